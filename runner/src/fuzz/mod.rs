//! Fuzz targets: every parser that reads what strangers, other programs and other machines say, or what people write into files.
//!
//! Each target is a test with *properties*: not only that nothing panics, but what must hold for whatever is accepted and for
//! whatever is refused. Inputs are the files in `runner/corpus/TARGET/`, first as they are, then damaged. An ordinary test run gives
//! each target a second; for more:
//!
//! ```text
//! FUZZ_SECONDS=60 cargo test --package bwvisu-runner --lib fuzz:: -- --nocapture --test-threads=2
//! ```
//!
//! `FUZZ_SEED` repeats a run. An input that breaks a property is made small, shown, and saved; it belongs into the corpus then.
//! What holds for each input of each target beside its own properties: it takes less than a second, and the process stays within
//! 1 GiB of memory, also while other tests run in it.

mod account;
mod api_words;
mod config;
mod credentials;
mod engine;
mod http_head;
mod iptables_save;
mod job_body;
mod keyhole;
mod mustache;
mod mutate;
mod node_list;
mod probe;
mod records;
mod settings;
mod squeue;
mod template;

use engine::{Outcome, Target};

/// One test for each target, and the list of all.
macro_rules! targets {
    ($($name:ident: $target:path;)*) => {
        const TARGETS: &[Target] = &[$($target),*];
        $(
            #[test]
            fn $name() {
                engine::run(&$target);
            }
        )*
    };
}

targets! {
    accounts_of_the_cluster_keep_their_promises: account::TARGET;
    words_of_the_apis_paths_keep_their_promises: api_words::TARGET;
    configurations_keep_their_promises: config::TARGET;
    credentials_keep_their_promises: credentials::TARGET;
    heads_of_requests_keep_their_promises: http_head::TARGET;
    listings_of_iptables_keep_their_promises: iptables_save::TARGET;
    bodies_of_jobs_keep_their_promises: job_body::TARGET;
    bodies_of_keyhole_keep_their_promises: keyhole::TARGET;
    mustache_keeps_its_promises: mustache::TARGET;
    node_lists_keep_their_promises: node_list::TARGET;
    reports_of_nc_keep_their_promises: probe::TARGET;
    records_of_the_store_keep_their_promises: records::TARGET;
    settings_keep_their_promises: settings::TARGET;
    answers_of_squeue_keep_their_promises: squeue::TARGET;
    templates_keep_their_promises: template::TARGET;
}

/// Text, or the outcome of what is none: these parsers get text alone, from readers that refuse all else.
fn text(input: &[u8]) -> Result<&str, Outcome> {
    std::str::from_utf8(input).map_err(|_| Outcome::refused("not text"))
}

/// Some places where a text can be cut, the same for the same text: all where it is short, else 64 of them.
fn cuts(text: &str) -> impl Iterator<Item = usize> {
    let step = (text.len() / 64).max(1);
    let first = text.len() % step;
    (first..text.len()).step_by(step).filter(|at| text.is_char_boundary(*at))
}

#[test]
fn every_folder_of_the_corpus_belongs_to_a_target_and_holds_something() {
    let entries = std::fs::read_dir(engine::corpora()).expect("runner/corpus");
    let mut folders: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    folders.sort();
    let mut names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    names.sort_unstable();
    assert_eq!(folders, names);
    for name in names {
        let files = engine::corpus(name);
        assert!(files.len() >= 2 && files.iter().any(|file| !file.is_empty()), "{name}: {} files", files.len());
    }
}
