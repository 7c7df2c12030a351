//! Against a simulated host.

use super::message::LONGEST;
use super::simulated_host::Host;
use super::*;
use tether_wire::message::Action;

impl Door for Host {
    fn call(&mut self, registers: Registers) -> Registers {
        let Registers {
            eax,
            ebx,
            ecx,
            edx,
            esi,
            edi,
        } = registers;
        let [eax, ebx, ecx, edx, esi, edi] = self.call([eax, ebx, ecx, edx, esi, edi]);
        Registers {
            eax,
            ebx,
            ecx,
            edx,
            esi,
            edi,
        }
    }
}

/// What answers on QEMU's port: the version, and no messages (hw/i386/vmport.c).
struct Qemu;

impl Door for Qemu {
    fn call(&mut self, registers: Registers) -> Registers {
        match registers.ecx {
            GET_VERSION => Registers {
                eax: 6,
                ebx: MAGIC,
                ecx: 2,
                ..registers
            },
            _ => registers,
        }
    }
}

/// A port that nobody is behind.
struct Nobody;

impl Door for Nobody {
    fn call(&mut self, registers: Registers) -> Registers {
        Registers {
            eax: u32::MAX,
            ..registers
        }
    }
}

#[test]
fn a_value_is_read_and_a_missing_one_is_not() {
    for (is_old, checkpoint_every) in [(false, None), (true, None), (false, Some(45))] {
        let mut host = Host::new();
        host.is_old = is_old;
        host.checkpoint_every = checkpoint_every;
        let key = "0f".repeat(32);
        host.values
            .insert("guestinfo.tether.key".into(), key.clone().into_bytes());
        let channel = b"serial:ttyS1\n\0".to_vec();
        host.values
            .insert("guestinfo.tether.channel".into(), channel);
        host.values
            .insert("guestinfo.tether.empty".into(), Vec::new());
        assert_eq!(value(&mut host, "key"), Some(key.into_bytes()));
        assert_eq!(value(&mut host, "channel").unwrap(), b"serial:ttyS1");
        assert_eq!(value(&mut host, "empty").unwrap(), b"");
        assert_eq!(value(&mut host, "identity"), None);
        assert!(host.channels.is_empty(), "a channel was left open");
    }
}

#[test]
fn a_platform_without_messages_has_no_values() {
    assert_eq!(version(&mut Qemu), Some(6));
    assert_eq!(value(&mut Qemu, "key"), None);
    assert_eq!(version(&mut Nobody), None);
    assert_eq!(value(&mut Nobody, "key"), None);
    assert_eq!(ask(&mut Qemu, b"info-get x"), Err(Failure::Broken));
    // Here is none; and no I/O privilege is kept that was not there.
    if !backdoor::cpuid_says_vmware() {
        assert!(door().is_none());
    }
}

#[test]
fn messages_of_every_length_arrive_whole() {
    for length in (0..70).chain([1000, LONGEST - 3, LONGEST - 2]) {
        let mut host = Host::new();
        let value: Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
        host.values.insert("x".into(), value.clone());
        assert_eq!(ask(&mut host, b"info-get x"), Ok(value.clone()));
        let request = [b"log ", &value[..value.len().min(LONGEST - 4)]].concat();
        ask(&mut host, &request).unwrap();
        assert_eq!(host.requests.last(), Some(&request));
    }
    // One that is too long is not taken, and the host is told so.
    let mut host = Host::new();
    host.values.insert("x".into(), vec![0; LONGEST]);
    assert_eq!(ask(&mut host, b"info-get x"), Err(Failure::Broken));
}

#[test]
fn a_host_that_always_interrupts_is_given_up() {
    let mut host = Host::new();
    host.checkpoint_every = Some(1);
    assert_eq!(ask(&mut host, b"info-get x"), Err(Failure::Broken));
    assert!(host.calls < 100, "{}", host.calls);
}

fn facts(name: &str, addresses: &[&str]) -> Facts {
    let address = |text: &&str| NicAddress {
        address: text.parse().unwrap(),
        prefix: 24,
        leased: false,
    };
    let nic = Nic {
        mac: "00:50:56:00:00:01".into(),
        addresses: addresses.iter().map(address).collect(),
    };
    Facts {
        name: name.into(),
        nics: vec![nic],
    }
}

/// Looks until nothing more is to be said at once.
fn settle(tools: &mut Tools, host: &mut Host, now: &mut u64, facts: &Facts) -> Option<Action> {
    let mut action = None;
    for _ in 0..100 {
        let wish = tools.look(host, *now, || facts.clone());
        action = action.or(wish);
        if tools.deadline() > *now {
            *now = tools.deadline();
            return action;
        }
    }
    panic!("the tools do not come to rest");
}

#[test]
fn the_tools_are_registered_and_tell_what_changes() {
    let (mut host, mut tools, mut now) = (Host::new(), Tools::default(), 0);
    let shown = facts("web", &["192.0.2.7"]);
    assert_eq!(settle(&mut tools, &mut host, &mut now, &shown), None);
    assert_eq!(host.said(), [""]);
    assert!(host.requests().is_empty(), "something was told unasked");
    host.order("reset");
    settle(&mut tools, &mut host, &mut now, &shown);
    assert_eq!(host.said(), ["", "OK ATR toolbox"]);
    assert_eq!(host.requests(), ["vmx.capability.unified_loop toolbox\0"]);
    host.order("Capabilities_Register");
    host.order("Set_Option synctime 0");
    host.order("ping");
    host.order("OS_Frobnicate");
    settle(&mut tools, &mut host, &mut now, &shown);
    let answers = ["", "OK ", "OK ", "OK ", "ERROR Unknown Command"];
    assert_eq!(host.said(), answers);
    let requests = host.requests();
    assert_eq!(
        requests[..4],
        [
            "tools.capability.statechange ",
            "tools.capability.softpowerop_retry ",
            "tools.set.version 2147483647\0",
            "SetGuestInfo  1 web\0",
        ]
    );
    assert!(requests[4].starts_with("SetGuestInfo  10 "), "{requests:?}");
    assert_eq!(requests.len(), 5);

    // Nothing new is nothing told; what is new, is.
    settle(&mut tools, &mut host, &mut now, &shown);
    assert!(host.requests().is_empty());
    let shown = facts("web", &["192.0.2.7", "2001:db8::1"]);
    settle(&mut tools, &mut host, &mut now, &shown);
    let requests = host.requests();
    assert!(requests.len() == 1 && requests[0].starts_with("SetGuestInfo  10 "));
    // After a reset all is told again.
    host.order("reset");
    settle(&mut tools, &mut host, &mut now, &shown);
    assert_eq!(host.requests().len(), 3);
}

#[test]
fn a_quiet_host_is_looked_at_once_a_second_and_a_talking_one_at_once() {
    let (mut host, mut tools, mut now) = (Host::new(), Tools::default(), 0);
    let shown = facts("", &[]);
    for _ in 0..10 {
        settle(&mut tools, &mut host, &mut now, &shown);
    }
    let before = now;
    settle(&mut tools, &mut host, &mut now, &shown);
    assert_eq!(now - before, 1_000_000);
    host.order("ping");
    tools.look(&mut host, now, || shown.clone());
    assert_eq!(tools.deadline(), now);
}

#[test]
fn a_guest_is_shut_down_when_the_host_asks() {
    for (order, wish, status) in [
        ("OS_Halt", Some(Action::PowerOff), "1"),
        ("OS_Reboot", Some(Action::Reboot), "2"),
        ("OS_Suspend", None, "5"),
    ] {
        let (mut host, mut tools, mut now) = (Host::new(), Tools::default(), 0);
        let shown = facts("web", &[]);
        host.order(&format!("{order}\0"));
        assert_eq!(settle(&mut tools, &mut host, &mut now, &shown), wish);
        assert_eq!(host.said(), ["", "OK "]);
        let expected = format!("tools.os.statechange.status 1 {status}\0");
        assert_eq!(host.requests(), [expected]);
        // The heart beats on until the machine is off.
        assert_eq!(settle(&mut tools, &mut host, &mut now, &shown), None);
        assert_eq!(host.said(), [""]);
    }
}

#[test]
fn a_channel_that_the_host_forgot_is_opened_anew() {
    let (mut host, mut tools, mut now) = (Host::new(), Tools::default(), 0);
    let shown = facts("web", &[]);
    settle(&mut tools, &mut host, &mut now, &shown);
    host.channels.clear();
    settle(&mut tools, &mut host, &mut now, &shown);
    host.said();
    host.order("reset");
    settle(&mut tools, &mut host, &mut now, &shown);
    assert_eq!(host.said(), ["", "OK ATR toolbox"]);
    assert_eq!(host.channels.len(), 1);
    // Where there never is one, it is tried now and then.
    let mut tools = Tools::default();
    assert_eq!(tools.look(&mut Qemu, 7, || shown.clone()), None);
    assert_eq!(tools.deadline(), 5_000_007);
}

#[test]
fn an_old_host_is_told_addresses_as_it_knows_them() {
    let run = |refuses: &[&'static [u8]]| {
        let (mut host, mut tools, mut now) = (Host::new(), Tools::default(), 0);
        host.refuses = refuses.to_vec();
        host.order("Capabilities_Register");
        let shown = facts("", &["192.0.2.7"]);
        settle(&mut tools, &mut host, &mut now, &shown);
        settle(&mut tools, &mut host, &mut now, &shown);
        let requests = host.requests();
        let kinds = requests[3..].iter().map(|request| {
            let end = request.find('\0').unwrap_or(request.len());
            request[..end].to_owned()
        });
        kinds.collect::<Vec<_>>()
    };
    assert_eq!(run(&[]), ["SetGuestInfo  10 "]);
    assert_eq!(
        run(&[b"SetGuestInfo  10 "]),
        ["SetGuestInfo  10 ", "SetGuestInfo  9 "]
    );
    assert_eq!(
        run(&[b"SetGuestInfo"]),
        [
            "SetGuestInfo  10 ",
            "SetGuestInfo  9 ",
            "info-set guestinfo.ip 192.0.2.7"
        ]
    );
}

#[test]
fn addresses_are_xdr_as_nicinfo_x_has_them() {
    let mut shown = facts("web", &["192.0.2.7", "2001:db8::1"]);
    shown.nics[0].addresses[0].leased = true;
    let mut out = Vec::new();
    nics::encode(&shown.nics, &mut out);
    let words = |words: &[u32]| {
        words
            .iter()
            .flat_map(|word| word.to_be_bytes())
            .collect::<Vec<_>>()
    };
    let expected = [
        // Version, the optional body, one NIC.
        words(&[3, 1, 1]),
        words(&[17]),
        b"00:50:56:00:00:01\0\0\0".to_vec(),
        words(&[2]),
        words(&[1, 4]),
        vec![192, 0, 2, 7],
        words(&[24, 1, 4, 1, 1]),
        words(&[2, 16]),
        vec![0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        words(&[24, 1, 2, 1, 1]),
        words(&[0, 0, 0, 0]),
        words(&[0, 0, 0, 0, 0]),
    ];
    assert_eq!(out, expected.concat());
    let many = vec![shown.nics[0].clone(); 40];
    let mut out = Vec::new();
    nics::encode(&many, &mut out);
    assert_eq!(out[8..12], 16u32.to_be_bytes());
}
