//! What the tree of files is, and what a start and a running server change in it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::SystemTime;

use super::*;
use crate::join::certificate;
use crate::scratch::Scratch;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// What a server may be called.
pub fn names() -> Names {
    Names {
        node: "box-1".to_owned(),
        addresses: vec!["192.0.2.7".parse().unwrap()],
        cluster_domain: "cluster.local".to_owned(),
        service: Some("10.43.0.1".parse().unwrap()),
        extra: vec!["api.example.org".to_owned()],
        ..Names::default()
    }
}

fn tree(dir: &Path) -> BTreeMap<String, (u32, Vec<u8>, SystemTime)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::metadata(&path).unwrap();
            if meta.is_dir() {
                folders.push(path.clone());
            }
            let content = if meta.is_dir() {
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            all.insert(
                name,
                (meta.permissions().mode() & 0o777, content, meta.modified().unwrap()),
            );
        }
    }
    all
}

#[test]
fn the_tree_is_the_one_k3s_makes_and_private() {
    let scratch = Scratch::new("pki-tree");
    Pki::load_or_create(&scratch.0.join("server"), &names(), at("2026-11-25T00:00:00Z")).unwrap();
    let tree = tree(&scratch.0);
    for (name, (mode, _, _)) in &tree {
        let folder = scratch.0.join(name).is_dir();
        assert_eq!(*mode, if folder { 0o700 } else { 0o600 }, "{name}");
    }
    for name in [
        "client-ca.crt",
        "client-ca.key",
        "server-ca.crt",
        "server-ca.key",
        "request-header-ca.crt",
        "request-header-ca.key",
        "etcd/server-ca.crt",
        "etcd/server-ca.key",
        "etcd/peer-ca.crt",
        "etcd/peer-ca.key",
        "client-ca.nochain.crt",
        "server-ca.nochain.crt",
        "service.key",
        "client-kubelet.key",
        "serving-kubelet.key",
        "client-admin.crt",
        "client-admin.key",
        "client-supervisor.crt",
        "client-controller.crt",
        "client-scheduler.crt",
        "client-kube-apiserver.crt",
        "client-kube-apiserver.key",
        "client-kube-proxy.crt",
        "client-k3s-controller.crt",
        "client-k3s-cloud-controller.crt",
        "client-auth-proxy.crt",
        "serving-kube-apiserver.crt",
        "serving-kube-apiserver.key",
    ] {
        assert!(tree.contains_key(&format!("server/tls/{name}")), "{name} is missing");
    }
}

#[test]
fn a_second_start_changes_nothing() {
    let scratch = Scratch::new("pki-again");
    let first = Pki::load_or_create(&scratch.0, &names(), at("2026-11-25T00:00:00Z")).unwrap();
    let before = tree(&scratch.0);
    let second = Pki::load_or_create(&scratch.0, &names(), at("2027-01-25T00:00:00Z")).unwrap();
    assert_eq!(tree(&scratch.0), before);
    assert_eq!(first.token_hash(), second.token_hash());
}

#[test]
fn leaves_are_renewed_with_their_keys_kept_and_authorities_never() {
    let scratch = Scratch::new("pki-renew");
    Pki::load_or_create(&scratch.0, &names(), at("2026-11-25T00:00:00Z")).unwrap();
    let before = tree(&scratch.0);
    Pki::load_or_create(&scratch.0, &names(), at("2027-10-25T00:00:00Z")).unwrap();
    let after = tree(&scratch.0);
    for (name, (_, content, _)) in &before {
        let leaf = name.ends_with(".crt") && !name.contains("-ca.");
        assert_eq!(after[name].1 != *content, leaf, "{name}");
    }
    let mut moved = names();
    moved.addresses = vec!["192.0.2.8".parse().unwrap()];
    Pki::load_or_create(&scratch.0, &moved, at("2027-10-25T00:00:00Z")).unwrap();
    let moved = tree(&scratch.0);
    for (name, (_, content, _)) in &after {
        assert_eq!(
            moved[name].1 != *content,
            name == "tls/serving-kube-apiserver.crt",
            "{name}"
        );
    }
}

#[test]
fn a_start_that_was_cut_off_anywhere_is_completed_by_the_next() {
    let scratch = Scratch::new("pki-cut");
    Pki::load_or_create(&scratch.0, &names(), at("2026-11-25T00:00:00Z")).unwrap();
    let whole = tree(&scratch.0);
    for name in whole.keys().filter(|name| name.ends_with(".crt")) {
        let cut = Scratch::new("pki-cut-one");
        for (file, (_, content, _)) in &whole {
            let path = cut.0.join(file);
            if scratch.0.join(file).is_dir() {
                fs::create_dir_all(path).unwrap();
            } else if file != name {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
        }
        Pki::load_or_create(&cut.0, &names(), at("2026-11-25T00:00:00Z"))
            .unwrap_or_else(|error| panic!("without {name}: {error}"));
        assert_eq!(
            tree(&cut.0).keys().collect::<Vec<_>>(),
            whole.keys().collect::<Vec<_>>(),
            "without {name}"
        );
    }
}

#[test]
fn a_clock_that_cannot_be_right_dates_authorities_by_the_floor_and_changes_no_certificate() {
    let scratch = Scratch::new("pki-clock-first");
    let pki = Pki::load_or_create(&scratch.0, &names(), at("1970-01-01T00:01:00Z")).unwrap();
    let year = 365 * 86_400;
    assert_eq!(pki.client.since(), PLAUSIBLE_SINCE - 3600);
    for which in [Own::Serving, Own::Admin, Own::AuthProxy] {
        let own = window(&pki.own(which).unwrap().chain);
        assert_eq!(own, (PLAUSIBLE_SINCE - 3600, PLAUSIBLE_SINCE + year), "{which:?}");
    }
    // The clock is set, years later.
    assert_eq!(pki.renew(at("2028-06-01T00:00:00Z")).unwrap().len(), OWN.len());
    let now = at("2028-06-01T00:00:00Z").as_second();
    assert_eq!(window(&pki.own(Own::Serving).unwrap().chain), (now - 3600, now + year));

    let scratch = Scratch::new("pki-clock");
    Pki::load_or_create(&scratch.0, &names(), at("2026-11-25T00:00:00Z")).unwrap();
    let before = tree(&scratch.0);
    Pki::load_or_create(&scratch.0, &names(), at("1970-01-01T00:01:00Z")).unwrap();
    assert_eq!(
        tree(&scratch.0),
        before,
        "a later start with a wrong clock keeps what there is"
    );
}

/// From when to when a chain's leaf (PEM) is good, in seconds since 1970.
fn window(chain: &str) -> (i64, i64) {
    let leaf = &certificate::certificates(chain).unwrap()[0];
    let (begins, ends) = (certificate::begins(leaf), certificate::ends(leaf));
    (begins.unwrap(), ends.unwrap())
}

#[test]
fn what_a_clock_behind_signs_is_good_by_it_and_by_a_right_one() {
    let made = at("2026-11-25T00:00:00Z");
    for (name, clock) in [
        ("without a battery", "1970-01-01T00:01:00Z"),
        ("behind the authority", "2026-11-20T00:00:00Z"),
        ("a year back", "2027-10-01T00:00:00Z"),
    ] {
        let scratch = Scratch::new("pki-behind");
        Pki::load_or_create(&scratch.0, &names(), made).unwrap();
        // Its newest certificates are nearly two years younger than its authorities.
        let right = at("2028-10-25T00:00:00Z");
        Pki::load_or_create(&scratch.0, &names(), right).unwrap();
        let mut clock = at(clock);
        // Also by the certificates that such a start signs for itself.
        for start in 0..3 {
            let pki = Pki::load_or_create(&scratch.0, &names(), clock).unwrap();
            assert!(pki.is_behind(clock), "{name}, start {start}");
            assert!(!pki.is_behind(right), "{name}, start {start}");
            assert_eq!(pki.floor(), right.as_second(), "{name}, start {start}");
            let key = PrivateKey::generate().unwrap();
            let node = pki
                .sign_client(&Wanted::client("system:node:pi", &[]), key.pair(), clock)
                .unwrap();
            let own = pki.own(Own::Serving).unwrap();
            let (since, year) = (pki.client.since(), 365 * 86_400);
            for (whose, chain) in [("a node's", &node), ("its own", &own.chain)] {
                let (from, until) = window(chain);
                // Its own stays while the clock says nothing of its age.
                let kept = whose == "its own" && clock.as_second() < since;
                assert!(
                    kept || from <= clock.as_second().max(since),
                    "{name}, start {start}: {whose}"
                );
                let wanted = right.as_second() + year;
                assert!(until >= wanted, "{name}, start {start}: {whose} ends at {until}");
            }
            let admin = certificate::certificates(&pki.own(Own::Admin).unwrap().chain).unwrap();
            for chain in [&certificate::certificates(&node).unwrap(), &admin] {
                let caller = pki.entrance().unwrap().judge.caller(chain, clock);
                assert!(caller.at(clock).unwrap().is_some(), "{name}, start {start}: {caller:?}");
            }
            clock += jiff::SignedDuration::from_hours(2);
        }
    }
}

#[test]
fn what_a_clock_ahead_signed_gives_way_to_what_is_good_until_the_authority_ends() {
    let scratch = Scratch::new("pki-ahead");
    let now = at("2026-11-25T00:00:00Z");
    Pki::load_or_create(&scratch.0, &names(), now).unwrap();
    Pki::load_or_create(&scratch.0, &names(), at("2080-01-01T00:00:00Z")).unwrap();
    let later = at("2026-12-25T00:00:00Z");
    for start in 0..2 {
        let pki = Pki::load_or_create(&scratch.0, &names(), later).unwrap();
        let (from, until) = window(&pki.own(Own::Serving).unwrap().chain);
        assert_eq!(
            (from, until),
            (later.as_second() - 3600, now.as_second() + 3650 * 86_400)
        );
        let key = PrivateKey::generate().unwrap();
        // Of a node that joined before, and is to be let in.
        let wanted = Wanted::client("system:node:pi", &[]);
        let node = pki.client.sign(&wanted, key.pair(), now, 0).unwrap();
        let chain = certificate::certificates(&node).unwrap();
        let caller = pki.entrance().unwrap().judge.caller(&chain, later);
        assert!(caller.at(later).unwrap().is_some(), "start {start}: {caller:?}");
    }
}

#[test]
fn a_running_server_renews_what_is_old_or_was_taken_away_and_nothing_else() {
    let scratch = Scratch::new("pki-running");
    let pki = Pki::load_or_create(&scratch.0, &names(), at("2026-11-25T00:00:00Z")).unwrap();
    assert_eq!(pki.renew(at("2026-11-25T01:00:00Z")).unwrap(), []);
    let before = tree(&scratch.0);
    for (name, now) in [
        ("a clock without a battery", "1970-01-01T00:01:00Z"),
        ("a clock before the authority's beginning", "2026-11-20T00:00:00Z"),
    ] {
        assert_eq!(pki.renew(at(now)).unwrap(), [], "{name}");
    }
    assert_eq!(tree(&scratch.0), before);
    let serving = pki.own(Own::Serving).unwrap().chain.clone();
    assert_eq!(pki.renew(at("2027-10-25T00:00:00Z")).unwrap().len(), OWN.len());
    assert_ne!(pki.own(Own::Serving).unwrap().chain, serving);
    // A clock that was ahead and is right again: what was signed meanwhile is not valid yet.
    assert_eq!(pki.renew(at("2026-12-25T00:00:00Z")).unwrap().len(), OWN.len());
    fs::remove_file(scratch.0.join("tls/client-admin.crt")).unwrap();
    fs::remove_file(scratch.0.join("tls/client-admin.key")).unwrap();
    assert_eq!(pki.renew(at("2026-12-25T00:00:00Z")).unwrap(), [Own::Admin]);
}

#[test]
fn a_lost_authority_key_is_named_and_not_replaced() {
    let scratch = Scratch::new("pki-lost");
    Pki::load_or_create(&scratch.0, &names(), at("2026-11-25T00:00:00Z")).unwrap();
    fs::remove_file(scratch.0.join("tls/server-ca.key")).unwrap();
    let error = Pki::load_or_create(&scratch.0, &names(), at("2026-11-25T00:00:00Z"))
        .err()
        .unwrap();
    assert!(error.to_string().contains("tls/server-ca.key: missing"), "{error}");
}

#[test]
fn a_machine_that_gets_its_address_later_has_a_certificate_for_it_then_and_no_other_is_made_before() {
    let scratch = Scratch::new("pki-address");
    let now = at("2026-11-25T00:00:00Z");
    Pki::load_or_create(&scratch.0, &names(), now).unwrap();
    let before = tree(&scratch.0);
    let booting = Names {
        addresses: vec!["127.0.0.1".parse().unwrap()],
        stays: Some(|name| name.parse::<IpAddr>().is_ok()),
        ..names()
    };
    let pki = Pki::load_or_create(&scratch.0, &booting, now).unwrap();
    assert_eq!(
        pki.readdress(names().addresses, |_| false, now).unwrap(),
        [],
        "the same as at the last start"
    );
    assert_eq!(tree(&scratch.0), before, "nothing was written");
    let moved = vec!["192.0.2.8".parse().unwrap()];
    assert_eq!(pki.readdress(moved, |_| false, now).unwrap(), [Own::Serving]);
    let sans = sans_of(&pki.own(Own::Serving).unwrap().chain);
    assert!(sans.contains("192.0.2.8") && !sans.contains("192.0.2.7"), "{sans:?}");
    assert_eq!(pki.renew(now).unwrap(), [], "and it stays");
}

#[test]
fn what_clients_come_to_gets_into_the_certificate_and_stays_over_a_restart_while_it_is_true() {
    let scratch = Scratch::new("pki-met");
    let now = at("2026-11-25T00:00:00Z");
    let open = |any_name, stays| {
        let names = Names {
            any_name,
            stays,
            ..names()
        };
        Pki::load_or_create(&scratch.0, &names, now).unwrap()
    };
    let second = "198.51.100.7".parse().unwrap();
    let pki = open(false, Some(|name| name == "198.51.100.7"));
    assert_eq!(pki.lacks("192.0.2.7".parse().unwrap(), None), Vec::<String>::new());
    let lacking = pki.lacks(second, Some("evil.example"));
    assert_eq!(lacking, ["198.51.100.7"], "a client cannot choose a name");
    assert_eq!(pki.meet(lacking, now).unwrap(), [Own::Serving]);
    assert_eq!(pki.lacks(second, None), Vec::<String>::new());
    assert!(sans_of(&pki.own(Own::Serving).unwrap().chain).contains("198.51.100.7"));

    let before = tree(&scratch.0);
    let pki = open(false, Some(|name| name == "198.51.100.7"));
    assert_eq!(
        (pki.lacks(second, None), tree(&scratch.0)),
        (Vec::new(), before),
        "nothing is made anew"
    );
    let pki = open(false, Some(|_| false));
    assert_eq!(
        pki.lacks(second, None).len(),
        1,
        "the machine has the address no longer"
    );
    let pki = open(true, Some(|_| true));
    assert_eq!(
        pki.lacks(second, Some("front.example")),
        ["198.51.100.7", "front.example"],
        "unless the operator lets it"
    );
}

#[test]
fn names_are_read_while_certificates_are_made_and_are_those_of_now() {
    let scratch = Scratch::new("pki-names");
    let now = at("2026-11-25T00:00:00Z");
    let pki = Pki::load_or_create(&scratch.0, &names(), now).unwrap();
    let held = pki.held_names();
    let read = std::thread::scope(|scope| {
        let (sender, read) = std::sync::mpsc::channel();
        let pki = &pki;
        scope.spawn(move || sender.send(pki.names()));
        let read = read.recv_timeout(std::time::Duration::from_secs(10));
        drop(held);
        read
    });
    assert_eq!(read.unwrap().addresses, names().addresses);
    let moved: Vec<IpAddr> = vec!["192.0.2.8".parse().unwrap()];
    pki.readdress(moved.clone(), |_| true, now).unwrap();
    assert_eq!(pki.names().addresses, moved);
    pki.meet(vec!["198.51.100.7".to_owned()], now).unwrap();
    assert!(pki.names().met.contains("198.51.100.7"));
}
