//! What holds for all bodies, signatures and node lists, tried on random ones.

use keyhole_protocol::{
    Confirm, Grant, GrantedPort, MAX_NODES, MAX_PORTS, Nonce, Purpose, Request, Token, nodelist, sign, verify,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

fn requests() -> impl Strategy<Value = Request> {
    let nodes = btree_set("[a-z][a-z0-9_]{0,12}(-ib[0-9])?(\\.[a-z]{1,5})?", 1..40);
    (any::<u64>(), any::<u32>(), any::<[u8; 16]>(), 1..=MAX_PORTS, nodes).prop_map(|(job, run, nonce, ports, nodes)| Request {
        job,
        run,
        nonce: Nonce(nonce),
        ports,
        nodes: nodes.into_iter().collect(),
    })
}

fn grants() -> impl Strategy<Value = Grant> {
    let ports = btree_map(1..=u16::MAX, "[A-Za-z0-9.:-]{1,40}", 1..40);
    (any::<[u8; 16]>(), ports).prop_map(|(nonce, ports)| Grant {
        nonce: Nonce(nonce),
        ports: ports
            .into_iter()
            .map(|(port, gateway)| GrantedPort { internal: port, gateway, external: u16::MAX - port + 1 })
            .collect(),
    })
}

fn confirms() -> impl Strategy<Value = Confirm> {
    (any::<u64>(), any::<u32>(), any::<[u8; 16]>()).prop_map(|(job, run, nonce)| Confirm { job, run, nonce: Nonce(nonce) })
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Texts that look like bodies, so that the parsers get beyond the first line.
fn nearly_bodies() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("keyhole 1".to_string()),
        "(job|run|ports) [0-9]{0,21}",
        "nonce [0-9a-g]{31,33}",
        "node [a-z0-9.-]{0,8}",
        "port [0-9]{1,6} [a-z0-9.:-]{0,6} [0-9]{1,6}",
        "\\PC{0,20}",
    ];
    vec(line, 0..9).prop_map(|lines| lines.join("\n") + "\n")
}

/// Texts that look like node lists.
fn nearly_lists() -> impl Strategy<Value = String> {
    prop_oneof!["[a-c0-2\\[\\],-]{0,24}", "[a-z]{0,3}(\\[[0-9]{1,20}(-[0-9]{1,20})?\\]?){0,5}", "\\PC{0,30}"]
}

proptest! {
    #![proptest_config(cases(600))]

    #[test]
    fn a_request_is_read_as_it_was_written(request in requests()) {
        prop_assert_eq!(Request::parse(&request.to_body()), Ok(request));
    }

    #[test]
    fn a_grant_is_read_as_it_was_written(grant in grants()) {
        prop_assert_eq!(Grant::parse(&grant.to_body()), Ok(grant));
    }

    #[test]
    fn a_confirmation_is_read_as_it_was_written(confirm in confirms()) {
        prop_assert_eq!(Confirm::parse(&confirm.to_body()), Ok(confirm));
    }

    #[test]
    fn a_body_that_is_accepted_is_the_only_one_of_its_value(text in nearly_bodies()) {
        if let Ok(request) = Request::parse(&text) {
            prop_assert_eq!(request.to_body(), text.as_str());
        }
        if let Ok(grant) = Grant::parse(&text) {
            prop_assert_eq!(grant.to_body(), text.as_str());
        }
        if let Ok(confirm) = Confirm::parse(&text) {
            prop_assert_eq!(confirm.to_body(), text.as_str());
        }
    }

    #[test]
    fn a_body_cut_short_or_made_longer_is_refused_or_another_value(request in requests(), cut in any::<prop::sample::Index>()) {
        let body = request.to_body();
        let end = cut.index(body.len());
        prop_assert_ne!(Request::parse(&body[..end]).ok(), Some(request.clone()));
        prop_assert_ne!(Request::parse(&(body + "\n")).ok(), Some(request));
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in any::<String>()) {
        let bodies = [Request::parse(&text).is_ok(), Grant::parse(&text).is_ok(), Confirm::parse(&text).is_ok()];
        prop_assert_eq!(bodies, [false; 3]);
        prop_assert!(Token::from_hex(&text).is_err());
        prop_assert!(text.parse::<Nonce>().is_err());
    }

    #[test]
    fn a_node_list_gives_host_names_or_an_error_inside_it(list in nearly_lists()) {
        match nodelist::expand(&list) {
            Ok(names) => {
                prop_assert!((1..=MAX_NODES).contains(&names.len()));
                prop_assert!(names.iter().all(|name| nodelist::is_host_name(name)));
            }
            Err(error) => prop_assert!(error.position() <= list.len()),
        }
    }

    #[test]
    fn host_names_stand_for_themselves(names in vec("[a-z][a-z0-9-]{0,20}[a-z0-9]", 1..50)) {
        prop_assert_eq!(nodelist::expand(&names.join(",")), Ok(names));
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn any_byte_that_is_altered_breaks_the_signature(request in requests(), key in any::<[u8; 32]>(), flip in 1..=255_u8) {
        let token = Token::from_bytes(key);
        let mut body = request.to_body().into_bytes();
        let signature = sign(&token, Purpose::Request, &body);
        prop_assert!(verify(&token, Purpose::Request, &body, &signature));
        for position in 0..body.len() {
            body[position] ^= flip;
            prop_assert!(!verify(&token, Purpose::Request, &body, &signature), "byte {}", position);
            body[position] ^= flip;
        }
    }

    #[test]
    fn any_digit_that_is_altered_breaks_the_signature(key in any::<[u8; 32]>(), digit in "[0-9a-f]") {
        let token = Token::from_bytes(key);
        let signature = sign(&token, Purpose::Grant, b"body");
        for position in 0..signature.len() {
            let mut other = signature.clone();
            other.replace_range(position..=position, &digit);
            prop_assert_eq!(verify(&token, Purpose::Grant, b"body", &other), other == signature);
        }
    }
}
