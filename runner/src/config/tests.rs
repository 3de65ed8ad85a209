//! Files that work, and what is said about those that do not.

use super::*;

/// The form that existing installations have.
const SEED: &str = r#"{
    "bwvisu-home-prefix" : "/shared/home",
    "gateway-nodes" : [
        { "internal-ip" : "10.100.0.101", "external-ip" : "203.0.113.248", "user" : "bwvisurunner", "port" : 22 },
        { "internal-ip" : "10.100.0.102", "external-ip" : "203.0.113.253", "user" : "bwvisurunner", "port" : 22 }
    ],
    "command-nodes" : [ { "ip" : "203.0.113.248", "user" : "bwvisurunner", "port" : 22 } ],
    "keyholed-servers" : [ { "ip": "203.0.113.86", "port" : 80} ],
    "keyholed-port-range" : { "min" : 50000, "max" : 60000 },
    "keyholed-max-forwarders-per-job" : 100,
    "etcd-servers" : [ { "ip": "127.0.0.1", "port" : 2379} ],
    "debug" : { "keyholed-static-forwarding" : "False" },
    "forwarding-hostname-suffix" : "-ib0"
}"#;

/// The seed with one key more.
fn with(key: &str) -> String {
    SEED.replace("\"forwarding", &format!("{key}, \"forwarding"))
}

fn config(text: &str) -> Result<Config> {
    let path = Path::new("config.json");
    check(file::parse(text, path)?, Settings::default(), path)
}

#[test]
fn an_existing_file_works_as_it_is() {
    let config = config(SEED).unwrap();
    let [cluster] = &config.clusters[..] else { panic!("one cluster") };
    assert_eq!((cluster.name.as_str(), cluster.gateways.len(), cluster.command_nodes.len()), ("default", 2, 1));
    assert_eq!(cluster.hostname_suffix, "-ib0");
    assert!(!config.keyhole.static_forwarding);
    assert_eq!(config.api.listen, "0.0.0.0:4242".parse().unwrap());
    assert_eq!(config.api.transport, Transport::SelfSigned);
    assert!(matches!(&config.store, StoreConfig::Etcd(etcd) if etcd.endpoints == ["http://127.0.0.1:2379"]));
}

#[test]
fn the_switch_for_static_forwarding_is_read_in_both_spellings() {
    for (text, on) in [("\"True\"", true), ("\"False\"", false), ("true", true), ("false", false)] {
        assert_eq!(config(&SEED.replace("\"False\"", text)).unwrap().keyhole.static_forwarding, on, "{text}");
    }
}

#[test]
fn without_etcd_the_store_is_embedded() {
    let text = SEED.replace(r#"[ { "ip": "127.0.0.1", "port" : 2379} ]"#, "[]");
    assert!(matches!(config(&text).unwrap().store, StoreConfig::Embedded(path) if path.ends_with("store.redb")));
}

#[test]
fn limits_and_drained_gateways_have_defaults_and_can_be_set() {
    let bounds = |config: &Config| (config.limits.submissions_in_flight, config.limits.jobs_per_user);
    let plain = config(SEED).unwrap();
    assert_eq!((bounds(&plain), plain.clusters[0].gateway_down), ((24, Some(100)), Duration::from_secs(60)));
    let text = with("\"gateway-down-seconds\": 6, \"limits\": {\"submissions-in-flight\": 28, \"jobs-per-user\": 0}");
    let set = config(&text.replacen("\"port\" : 22 }", "\"drain\": true }", 1)).unwrap();
    assert_eq!((bounds(&set), set.clusters[0].gateway_down), ((28, None), Duration::from_secs(6)));
    assert_eq!(set.clusters[0].gateways.iter().map(|gateway| gateway.drain).collect::<Vec<_>>(), [true, false]);
    let cluster = crate::cluster::Cluster::new(&set.clusters[0], &set).unwrap();
    assert_eq!(cluster.drained_by_config.into_iter().collect::<Vec<_>>(), ["10.100.0.101"]);
}

#[test]
fn what_is_wrong_is_named_with_key_file_and_line() {
    let cases = [
        (SEED.replace("\"debug\"", "\"debgu\""), "unknown field `debgu`", "line 12"),
        (SEED.replace("\"user\" : \"bwvisurunner\", \"port\" : 22 } ]", "\"user\" : 7 } ]"), "command-nodes[0].user", "line 7"),
        (SEED.replace("60000 }", "\"x\" }"), "keyholed-port-range.max", "line 9"),
        (SEED.replace("\"False\"", "\"Maybe\""), "debug.keyholed-static-forwarding", "line 12"),
        (SEED.replace("60000 }", "70000 }"), "keyholed-port-range.max", "line 9"),
        (SEED.replace("50000,", "60001,"), "keyholed-", ""),
        (SEED.replace(": 100,", ": 0,"), "keyholed-max-forwarders-per-job", ""),
        (SEED.replace("\"/shared/home\"", "\"home\""), "bwvisu-home-prefix", ""),
        (SEED.replace("10.100.0.102", "10.100.0.101"), "is there twice", ""),
        (SEED.replace("\"ip\" : \"203", "\"ip\" : \"-oProxyCommand=x203"), "command-nodes", ""),
        (SEED.replace("-ib0", "-ib0;reboot"), "forwarding-hostname-suffix", ""),
        (SEED.replace("\"forwarding", "\"api-listen\": \"4242\", \"forwarding"), "api-listen", ""),
        (SEED.replace("\"forwarding", "\"scheduler\": \"pbs\", \"forwarding"), "scheduler", "line 13"),
        (with("\"gateway-down-seconds\": 5.9"), "gateway-down-seconds", ""),
        (with("\"watch\": {\"keyhole-seconds\": 30}"), "gateway-down-seconds", ""),
        (with("\"limits\": {\"submissions-in-flight\": 0}"), "limits.submissions-in-flight", ""),
        (with("\"limits\": {\"submissions-in-flight\": 29}"), "limits.submissions-in-flight", ""),
        (with("\"limits\": {\"jobs-per-user\": -1}"), "limits.jobs-per-user", "line 13"),
        (with("\"limits\": {\"jobs\": 1}"), "limits.jobs", "line 13"),
        (SEED.replacen("\"port\" : 22 }", "\"drain\": 1 }", 1), "gateway-nodes[0].drain", "line 4"),
        (SEED[..SEED.len() - 1].to_owned(), "EOF", ""),
        (format!("{SEED}x"), "trailing", ""),
    ];
    for (text, what, line) in cases {
        let message = config(&text).err().unwrap_or_else(|| panic!("accepted, though it lacks {what}")).message;
        assert!(message.starts_with("config.json: ") && message.contains(what) && message.contains(line), "{what}: {message}");
    }
}

#[test]
fn metrics_are_shown_on_this_machine_or_where_plain_http_is_allowed_in_so_many_words() {
    let secrets = |api: Option<&str>, metrics: Option<&str>| Settings {
        api_password: api.map(str::to_owned),
        metrics_password: metrics.map(str::to_owned),
        ..Settings::default()
    };
    let cases = [
        ("\"metrics-listen\": \"127.0.0.1:9100\"", secrets(None, Some("m")), None),
        ("\"metrics-listen\": \"[::1]:9100\"", secrets(Some("a"), None), None),
        ("\"metrics-listen\": \"10.0.0.4:9100\", \"metrics-plain-http\": true", secrets(None, Some("m")), None),
        ("\"metrics-listen\": \"10.0.0.4:9100\"", secrets(None, Some("m")), Some("\"metrics-plain-http\": true")),
        ("\"metrics-listen\": \"0.0.0.0:9100\"", secrets(None, Some("m")), Some("reached over a network")),
        ("\"metrics-listen\": \"9100\"", secrets(None, Some("m")), Some("metrics-listen: \"9100\" is not ADDRESS:PORT")),
        ("\"metrics-listen\": \"127.0.0.1:9100\"", secrets(None, None), Some("write a metrics-password")),
        ("\"api-plain-http\": true", secrets(Some("a"), Some("a")), Some("metrics-password is the api-password")),
        ("\"api-plain-http\": true", secrets(Some("a"), Some("")), Some("metrics-password is empty")),
    ];
    for (keys, secrets, expected) in cases {
        let path = Path::new("config.json");
        let checked = check(file::parse(&with(keys), path).unwrap(), secrets, path);
        match (checked, expected) {
            (Ok(_), None) => {}
            (Err(error), Some(words)) => assert!(error.message.contains(words), "{keys}: {error}"),
            (other, _) => panic!("{keys}: {:?}", other.map(|config| config.metrics)),
        }
    }
}

#[test]
fn a_secrets_file_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.json");
    std::fs::write(&path, r#"{"api-password": "geheim"}"#).unwrap();
    let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o640);
    assert!(file::read_settings(&path).err().unwrap().message.contains("chmod 0600"));
    mode(0o600);
    assert_eq!(file::read_settings(&path).unwrap().api_password.as_deref(), Some("geheim"));
}

#[test]
fn a_broken_secrets_file_is_named_without_what_it_holds() {
    let path = Path::new("settings.json");
    for text in
        [r#"{"api-password": 47114711}"#, r#""47114711""#, r#"{"api-password": ["47114711"]}"#, r#"{"etcd-user": 47114711}"#]
    {
        let message = file::parse_settings(text, path).err().unwrap().message;
        assert!(message.starts_with("settings.json: ") && message.contains("expected"), "{message}");
        assert!(!message.contains("4711") && message.contains("line 1"), "{message}");
    }
}

#[test]
fn a_secret_does_not_show() {
    assert!(!format!("{:?}", Secret::new("geheim".into())).contains("geheim"));
}
