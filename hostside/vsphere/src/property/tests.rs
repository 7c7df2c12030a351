use super::*;
use crate::soap::Raw;
use crate::types::{ObjectUpdate, PropertyChange, PropertyFilterUpdate};

fn vm() -> ManagedObject {
    ManagedObject::new("VirtualMachine", "vm-1")
}

fn update(
    kind: ObjectUpdateKind,
    changes: &[(&str, PropertyChangeOp, Option<&str>)],
) -> ObjectUpdate {
    ObjectUpdate {
        kind,
        obj: vm(),
        changeSet: changes
            .iter()
            .map(|(name, op, value)| PropertyChange {
                name: (*name).to_owned(),
                op: op.clone(),
                val: value.map(Raw::string),
            })
            .collect(),
        missingSet: Vec::new(),
    }
}

fn after(updates: Vec<ObjectUpdate>) -> Option<BTreeMap<String, String>> {
    let set = UpdateSet {
        version: "1".into(),
        filterSet: vec![PropertyFilterUpdate {
            filter: ManagedObject::default(),
            objectSet: updates,
            missingSet: Vec::new(),
        }],
        truncated: None,
    };
    let mut changes = changes(&mut Objects::default(), set);
    assert_eq!(changes.len(), 1, "one object, one change");
    let (object, state) = changes.remove(0);
    assert_eq!(object, vm());
    state.map(|state| {
        state
            .iter()
            .map(|(name, node)| (name.clone(), node.text.clone()))
            .collect()
    })
}

#[test]
fn updates_of_one_answer_add_up_in_their_order() {
    use ObjectUpdateKind::{Enter, Leave, Modify};
    use PropertyChangeOp::{Assign, IndirectRemove};
    let entered = || {
        update(
            Enter,
            &[("name", Assign, Some("a")), ("power", Assign, Some("off"))],
        )
    };
    let map = |pairs: &[(&str, &str)]| {
        Some(
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        )
    };
    assert_eq!(
        after(vec![entered()]),
        map(&[("name", "a"), ("power", "off")])
    );
    let on = update(Modify, &[("power", Assign, Some("on"))]);
    assert_eq!(
        after(vec![entered(), on.clone()]),
        map(&[("name", "a"), ("power", "on")])
    );
    let unset = update(
        Modify,
        &[("power", Assign, None), ("name", IndirectRemove, None)],
    );
    assert_eq!(after(vec![entered(), unset]), map(&[]));
    assert_eq!(after(vec![entered(), update(Leave, &[])]), None);
    // One that left and came back has nothing of what it was.
    let back = update(Enter, &[("name", Assign, Some("b"))]);
    assert_eq!(
        after(vec![entered(), update(Leave, &[]), back]),
        map(&[("name", "b")])
    );
    // An update of what is not known, as it may come after a filter was added, is what is known then.
    assert_eq!(after(vec![on]), map(&[("power", "on")]));
}

#[test]
fn an_object_is_gone_when_it_left_the_last_filter() {
    use ObjectUpdateKind::{Enter, Leave};
    use PropertyChangeOp::Assign;
    let mut objects = Objects::default();
    let mut feed = |filter: &str, kind, value| {
        let of_filter = PropertyFilterUpdate {
            filter: ManagedObject::new("PropertyFilter", filter),
            objectSet: vec![update(kind, &[("name", Assign, value)])],
            missingSet: Vec::new(),
        };
        let set = UpdateSet {
            version: "1".into(),
            filterSet: vec![of_filter],
            truncated: None,
        };
        let changes = changes(&mut objects, set);
        for (object, state) in &changes {
            match state {
                Some(state) => objects.all.insert(object.clone(), state.clone()),
                None => objects.all.remove(object),
            };
        }
        (changes.len(), objects.get(&vm()).is_some())
    };
    assert_eq!(feed("one", Enter, Some("a")), (1, true));
    assert_eq!(feed("two", Enter, Some("a")), (1, true));
    assert_eq!(feed("one", Leave, None), (0, true));
    assert_eq!(feed("two", Leave, None), (1, false));
    assert_eq!(feed("two", Leave, None), (1, false));
}
