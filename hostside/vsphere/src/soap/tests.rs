use super::*;

#[test]
fn prefixes_do_not_matter_and_namespaces_do() {
    let one = br#"<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"
        xmlns:XMLSchema-instance="http://www.w3.org/2001/XMLSchema-instance" xmlns:v="urn:vim25"><s:Body>
        <v:R><v:returnval XMLSchema-instance:type="v:VirtualDisk" type="VirtualMachine">a &lt; b&#65;</v:returnval></v:R>
        </s:Body></s:Envelope>"#;
    let two = br#"<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>
        <R xmlns="urn:vim25" xmlns:x="http://www.w3.org/2001/XMLSchema-instance"><returnval x:type="VirtualDisk" type="VirtualMachine"><![CDATA[a < bA]]></returnval></R>
        </Body></Envelope>"#;
    let read = |bytes: &[u8]| match open(bytes).unwrap() {
        Body::Answer(node) => node,
        Body::Fault(fault) => panic!("{fault:?}"),
    };
    let (one, two) = (read(one), read(two));
    assert_eq!(one, two);
    let value = one.child("returnval").unwrap();
    assert_eq!(
        (value.type_name(), value.text.as_str()),
        ("VirtualDisk", "a < bA")
    );
    assert_eq!(value.reference_type.as_deref(), Some("VirtualMachine"));
    let other = br#"<Envelope xmlns="urn:other"><Body/></Envelope>"#;
    assert!(matches!(open(other), Err(Unreadable::NotSoap(_))));
}

#[test]
fn what_no_server_sends_is_refused() {
    let deep = "<a>".repeat(300);
    for text in [
        "",
        "<a>",
        "<a></b>",
        "<!DOCTYPE a [<!ENTITY x \"y\">]><a>&x;</a>",
        "<a>&x;</a>",
        deep.as_str(),
        "text",
    ] {
        assert!(read(text.as_bytes()).is_err(), "{text:.60} was taken");
    }
    assert!(read(b"<a>\xff</a>").is_err());
}

#[test]
fn what_has_no_type_here_is_written_as_it_was() {
    let text = r#"<value xmlns="urn:vim25" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:o="urn:other" xsi:type="NewThing"><ref type="Datastore">ds-1</ref><deep xsi:type="o:T"><n xsi:type="xsd:int">1</n><gone xsi:nil="true"></gone> &amp; "text"</deep></value>"#;
    let node = read(text.as_bytes()).unwrap();
    let written = envelope("M", |out| out.node("value", &node));
    let Body::Answer(again) = open(written.as_bytes()).unwrap() else {
        panic!("{written}");
    };
    assert_eq!(again.child("value"), Some(&node), "{written}");
}

#[test]
fn text_survives() {
    for text in ["a\r\nb", "<>&\"'", " lead", "ä€😀", "tab\t"] {
        let written = envelope("M", |out| out.leaf("t", text));
        let Body::Answer(node) = open(written.as_bytes()).unwrap() else {
            panic!("{written}");
        };
        assert_eq!(node.text_of("t"), Some(text), "{written}");
    }
    let written = envelope("M", |out| out.leaf("t", "a\u{1}b\u{fffe}"));
    assert!(written.contains("a\u{fffd}b\u{fffd}"), "{written}");
}
