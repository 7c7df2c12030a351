//! An XML element as it was read: the raw form of everything, and the only form of what has no type here.

/// The value of an `xsi:type` attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeName {
    /// The namespace its prefix stood for.
    pub namespace: String,
    /// The name without prefix, as in `VirtualDisk` or `string`.
    pub name: String,
}

/// An element.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its namespace; empty if it has none.
    pub namespace: String,
    /// Its name without prefix.
    pub name: String,
    /// Its `xsi:type`.
    pub xsi_type: Option<TypeName>,
    /// Its `type` attribute: the type of the managed object that a reference names.
    pub reference_type: Option<String>,
    /// Whether `xsi:nil` is true.
    pub nil: bool,
    /// Its text, that of its children not included.
    pub text: String,
    /// Its children, in the order they stood.
    pub children: Vec<Node>,
}

impl Node {
    /// The first child of this name.
    pub fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// All children of this name, in order.
    pub fn children_named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// The text of the first child of this name.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.as_str())
    }

    /// The name of its `xsi:type`, without the namespace; empty if it has none.
    pub fn type_name(&self) -> &str {
        self.xsi_type.as_ref().map_or("", |name| &name.name)
    }

    /// The descendant at this path of names.
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |node, name| node.child(name))
    }
}
