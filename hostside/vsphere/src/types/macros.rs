//! How the types are declared: a list of fields makes the struct, its writer, its reader and its shape.

/// The name of a field's element: Rust's spelling of a keyword has `r#` in front.
pub(crate) const fn wire(name: &'static str) -> &'static str {
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

/// Data objects.
macro_rules! data_objects {
    ($($(#[$doc:meta])* struct $name:ident { $($field:ident : $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Default, PartialEq)]
            #[allow(missing_docs, non_snake_case, reason = "fields are the API's")]
            pub struct $name { $(pub $field: $type,)* }

            $crate::types::macros::shape!($name { $($field: $type,)* });

            impl $crate::soap::Element for $name {
                const TYPE: &'static str = stringify!($name);

                fn write(&self, name: &str, out: &mut $crate::soap::Writer) {
                    out.open(name);
                    $crate::types::DataObject::write_fields(self, out);
                    out.close(name);
                }

                fn read(node: &$crate::soap::Node) -> Result<Self, $crate::soap::Malformed> {
                    $crate::types::DataObject::read_fields(node)
                }

                #[cfg(test)]
                #[allow(unused_variables, reason = "some types have no fields")]
                fn sample(depth: u32) -> Self {
                    Self { $($field: $crate::soap::Field::sample_field(depth),)* }
                }
            }
        )*

        /// Each of the types of this module: its name, its fields, and one of it written out in full.
        #[cfg(test)]
        pub(crate) fn samples() -> Vec<$crate::types::published::Sample> {
            vec![$($crate::types::published::Sample::of::<$name>(
                &<$name as $crate::soap::Element>::sample(4),
            ),)*]
        }
    };
}

macro_rules! shape {
    ($name:ident { $($field:ident : $type:ty,)* }) => {
        impl $crate::types::DataObject for $name {
            const NAME: &'static str = stringify!($name);
            const FIELDS: &'static [$crate::types::FieldShape] = &[$(
                $crate::types::FieldShape {
                    name: $crate::types::macros::wire(stringify!($field)),
                    type_name: <$type as $crate::soap::Field>::TYPE,
                    cardinality: <$type as $crate::soap::Field>::CARDINALITY,
                    polymorphic: <$type as $crate::soap::Field>::POLYMORPHIC,
                },
            )*];

            #[allow(unused_variables, reason = "some types have no fields")]
            fn write_fields(&self, out: &mut $crate::soap::Writer) {
                $($crate::soap::Field::write_field(
                    &self.$field, $crate::types::macros::wire(stringify!($field)), out,
                );)*
            }

            #[allow(unused_variables, reason = "some types have no fields")]
            fn read_fields(node: &$crate::soap::Node) -> Result<Self, $crate::soap::Malformed> {
                Ok(Self {
                    $($field: $crate::soap::Field::read_field(
                        node, $crate::types::macros::wire(stringify!($field)),
                    )?,)*
                })
            }
        }
    };
}

/// A value that is one of several types, which it says; of one that is not among them, what was read.
macro_rules! one_of {
    ($(#[$doc:meta])* enum $name:ident : $base:literal { $($variant:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs, reason = "variants are the API's types")]
        pub enum $name {
            $($variant(Box<$variant>),)*
            /// A type that is not among these.
            Other(Box<$crate::soap::Node>),
        }

        $(impl From<$variant> for $name {
            fn from(value: $variant) -> Self {
                Self::$variant(Box::new(value))
            }
        })*

        impl $crate::soap::Element for $name {
            const TYPE: &'static str = $base;
            const POLYMORPHIC: bool = true;

            fn write(&self, name: &str, out: &mut $crate::soap::Writer) {
                match self {
                    $(Self::$variant(value) => {
                        out.open_typed(name, stringify!($variant));
                        $crate::types::DataObject::write_fields(value.as_ref(), out);
                        out.close(name);
                    })*
                    Self::Other(node) => out.node(name, node),
                }
            }

            fn read(node: &$crate::soap::Node) -> Result<Self, $crate::soap::Malformed> {
                match node.type_name() {
                    $(stringify!($variant) => {
                        $crate::soap::Element::read(node).map(Self::$variant)
                    })*
                    _ => Ok(Self::Other(Box::new(node.clone()))),
                }
            }

            #[cfg(test)]
            fn sample(depth: u32) -> Self {
                // Every type has a sample of its own; the first stands for all.
                let all = [$($crate::types::macros::first::<$variant, Self>(depth)),*];
                all.into_iter().next().expect("a choice has variants")
            }
        }
    };
}

#[cfg(test)]
pub(crate) fn first<T: crate::soap::Element, U: From<T>>(depth: u32) -> U {
    U::from(T::sample(depth.saturating_sub(1)))
}

/// A word out of a list; of one that is not among them, the word.
macro_rules! words {
    ($(#[$doc:meta])* enum $name:ident { $($variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(missing_docs, reason = "variants are the API's words")]
        pub enum $name {
            $($variant,)*
            /// A word that is not among these.
            Other(String),
        }

        impl $name {
            /// The API's word.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Other(word) => word,
                }
            }
        }

        impl From<&str> for $name {
            fn from(word: &str) -> Self {
                match word {
                    $($word => Self::$variant,)*
                    other => Self::Other(other.to_owned()),
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::Other(String::new())
            }
        }

        impl $crate::soap::Element for $name {
            const TYPE: &'static str = stringify!($name);

            fn write(&self, name: &str, out: &mut $crate::soap::Writer) {
                out.leaf(name, self.as_str());
            }

            fn read(node: &$crate::soap::Node) -> Result<Self, $crate::soap::Malformed> {
                Ok(Self::from(node.text.trim()))
            }

            #[cfg(test)]
            fn sample(_depth: u32) -> Self {
                let all = [$(Self::$variant),*];
                all.into_iter().next().expect("there are words")
            }
        }
    };
}

/// Methods: their parameters, what they return, and what is to be known of them.
macro_rules! methods {
    ($(
        $(#[$doc:meta])*
        $object:ident . $name:ident ( $($field:ident : $type:ty),* $(,)? ) -> $returns:ty
            : $repeat:ident, [$($privilege:literal),*], $purpose:literal;
    )*) => {
        $(
            #[doc = concat!("`", stringify!($object), ".", stringify!($name), "`: ", $purpose, ".")]
            $(#[$doc])*
            #[derive(Debug, Clone, Default, PartialEq)]
            #[allow(missing_docs, non_camel_case_types, non_snake_case, reason = "names are the API's")]
            pub struct $name {
                /// The object it is asked of.
                pub _this: $crate::types::ManagedObject,
                $(pub $field: $type,)*
            }

            $crate::types::macros::shape!($name { _this: $crate::types::ManagedObject, $($field: $type,)* });

            impl $crate::types::Method for $name {
                type Returns = $returns;
                const REPEAT: $crate::types::Repeat = $crate::types::Repeat::$repeat;
            }
        )*

        /// Every method the client can call.
        pub const METHODS: &[$crate::types::MethodFacts] = &[$(
            $crate::types::MethodFacts {
                name: stringify!($name),
                object: stringify!($object),
                purpose: $purpose,
                privileges: &[$($privilege),*],
                repeat: $crate::types::Repeat::$repeat,
            },
        )*];

        /// As of the data objects.
        #[cfg(test)]
        pub(crate) fn method_samples() -> Vec<$crate::types::published::Sample> {
            vec![$($crate::types::published::Sample::of::<$name>(&$name {
                _this: $crate::soap::Element::sample(4),
                $($field: $crate::soap::Field::sample_field(4),)*
            }),)*]
        }
    };
}

pub(crate) use {data_objects, methods, one_of, shape, words};
