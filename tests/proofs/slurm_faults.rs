//! Slurm that does not answer, answers wrongly, or takes a job and does not say so.

use crate::main_path::fetch;
use crate::templates::{HELD, PORTLESS, SERVICE};
use bwvisu_tests::broken::HANG;
use bwvisu_tests::gateway::{all_forwardings, forwardings_of, records};
use bwvisu_tests::slurm::Queue;
use bwvisu_tests::wait::{throughout, until};
use bwvisu_tests::{Bed, Broken, Reply, Runner};
use serde_json::{Value, json};
use std::thread;
use std::time::{Duration, Instant};

fn submit(runner: &Runner, template: &str, variables: &Value) -> Reply {
    let body = json!({"uid": "alice", "template-name": template, "variables": variables});
    runner.api.call("POST", "/jobs", &body)
}

/// A submission that may be repeated.
fn submit_named(runner: &Runner) -> Reply {
    let body = json!({"uid": "alice", "template-name": PORTLESS.0, "variables": {"seconds": "600"}});
    let headers = [("Authorization", &*runner.api.authorization()), ("Idempotency-Key", "a-key-of-its-own")];
    runner.api.send("POST", "/jobs", &headers, body.to_string().as_bytes())
}

fn slurm_id(runner: &Runner, id: &str) -> String {
    runner.api.job(id)["scheduler-job-id"].as_str().unwrap_or_default().to_owned()
}

/// Slurm has just the jobs that were answered with 200, each once, and all others are gone from it.
fn assert_accepted_is_in_slurm(runner: &Runner, queue: &Queue, accepted: &[String]) {
    let mut expected: Vec<String> = accepted.iter().map(|id| slurm_id(runner, id)).collect();
    expected.sort();
    until("Slurm to have just what was accepted", 30, || queue.alive(), |alive| *alive == expected);
}

fn states(runner: &Runner, ids: &[String]) -> Vec<Value> {
    ids.iter().map(|id| runner.api.job(id)["state"].clone()).collect()
}

fn accepted(replies: &[Reply]) -> Vec<String> {
    replies.iter().filter_map(|reply| reply.body["job-id"].as_str().map(str::to_owned)).collect()
}

#[test]
fn slurmctld_stopped_for_half_a_minute_loses_no_job_and_doubles_none() {
    let bed = Bed::take();
    // The bed's MessageTimeout is half a minute: with this one, three rounds of "Socket timed out" fit into that.
    let _hasty = Broken::slurm_conf(&bed, "MessageTimeout=3", false);
    let queue = Queue::from_now(&bed);
    let runner = Runner::start(&bed, &[SERVICE, PORTLESS, HELD]);
    let seconds = json!({"seconds": "600"});
    let jobs: Vec<String> = [(SERVICE, json!({})), (PORTLESS, seconds.clone()), (HELD, json!({}))]
        .map(|(t, v)| runner.api.submit("alice", t.0, &v))
        .into();
    runner.wait_for(&jobs[0], "available", 40);
    runner.wait_for(&jobs[1], "running", 20);
    let replies: Vec<Reply> = thread::scope(|scope| {
        let fault = bed.fault("pause-daemon", "ctl", Some("slurmctld"));
        let early: Vec<_> = (0..2).map(|_| scope.spawn(|| submit(&runner, PORTLESS.0, &seconds))).collect();
        let named = scope.spawn(|| submit_named(&runner));
        let kept = |seen: &Vec<Value>| *seen == ["available", "running", "submitted"];
        throughout("stopped", Duration::from_secs(20), || states(&runner, &jobs), kept);
        let stale = |job: &Value| job["stale"] == true && job["message"].as_str().unwrap().contains("has not been heard since");
        until("jobs to be called stale", 5, || runner.api.job(&jobs[0]), stale);
        let late: Vec<_> = (0..2).map(|_| scope.spawn(|| submit(&runner, PORTLESS.0, &seconds))).collect();
        throughout("still stopped", Duration::from_secs(12), || states(&runner, &jobs), kept);
        fault.mend();
        println!("with an Idempotency-Key: {}", named.join().unwrap().status);
        // Whatever that one was told: asked again, it is the same job.
        let named = until("the job of the key", 60, || submit_named(&runner), |reply| reply.status == 200);
        early.into_iter().chain(late).map(|thread| thread.join().unwrap()).chain([named]).collect()
    });
    let answers: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
    println!("submissions to a stopped slurmctld: {answers:?}");
    assert!(answers.iter().all(|status| [200, 503].contains(status)), "{replies:#?}");
    assert!(runner.log().contains("Socket timed out"), "this was to be reached");
    let accepted = [jobs.clone(), accepted(&replies)].concat();
    assert_accepted_is_in_slurm(&runner, &queue, &accepted);
    assert_eq!(states(&runner, &jobs), ["available", "running", "submitted"]);
    until("jobs to be fresh", 20, || runner.api.job(&jobs[0]), |job| job["stale"] == false);
    assert_eq!(submit(&runner, PORTLESS.0, &seconds).status, 200, "all is well again");
}

/// What a broken squeue does, and whether the watcher has something to complain of within two seconds.
const LIES: [(&str, &str, bool); 6] = [
    ("an error", "echo 'slurm_load_jobs error: Unexpected message received' >&2; exit 1", true),
    ("garbage", "head -c 3000 /dev/urandom; exit 0", true),
    ("half a line", "\"$real\" \"$@\" | head -c -40; exit 0", true),
    ("a line of another width", "\"$real\" --noheader --states=all --format='%A|%j|%T'; exit 0", true),
    ("death in the middle", "\"$real\" \"$@\" | head -c 100; kill -KILL $$", true),
    ("silence", HANG, false),
];

#[test]
fn whatever_a_broken_squeue_prints_changes_no_state() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[SERVICE, PORTLESS, HELD]);
    let seconds = json!({"seconds": "600"});
    let jobs: Vec<String> = [(SERVICE, json!({})), (PORTLESS, seconds.clone()), (HELD, json!({}))]
        .map(|(t, v)| runner.api.submit("alice", t.0, &v))
        .into();
    runner.wait_for(&jobs[0], "available", 40);
    runner.wait_for(&jobs[1], "running", 20);
    for (what, script, complains) in LIES {
        let again = |log: &str| log.matches("watch jobs-watch-default: works again").count();
        let before = again(&runner.log());
        let complaints = |log: &str| {
            let of_the_watcher = |line: &&str| line.contains("watch jobs-watch-default: ") && !line.ends_with("works again");
            log.lines().filter(of_the_watcher).count()
        };
        let complained = complaints(&runner.log());
        let stubs = ["cmd0", "cmd1"].map(|host| Broken::stub(&bed, host, "/usr/bin/squeue", script));
        let kept = |seen: &Vec<Value>| *seen == ["available", "running", "submitted"];
        throughout(what, Duration::from_millis(2500), || states(&runner, &jobs), kept);
        assert_eq!(submit(&runner, PORTLESS.0, &json!({"seconds": "1"})).status, 200, "{what}: sbatch is well");
        if complains {
            until(&format!("a complaint about {what}"), 60, || complaints(&runner.log()), |count| *count > complained);
        }
        drop(stubs);
        if complains {
            until(&format!("the watcher to work again after {what}"), 40, || again(&runner.log()), |count| *count > before);
        }
    }
    let end = runner.api.submit("alice", PORTLESS.0, &json!({"seconds": "0"}));
    runner.wait_for(&end, "finished", 60);
    assert_eq!(states(&runner, &jobs), ["available", "running", "submitted"]);
}

#[test]
fn one_empty_answer_of_squeue_ends_no_job() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[PORTLESS]);
    let id = runner.api.submit("alice", PORTLESS.0, &json!({"seconds": "600"}));
    runner.wait_for(&id, "running", 20);
    // Every third look comes out empty.
    let script = "exec 9>>/run/real/count; flock 9; n=$(($(wc -l </run/real/count) + 1)); echo >&9\n\
                  [ $((n % 3)) -ne 0 ] || exit 0\nexec \"$real\" \"$@\"";
    let _stubs = ["cmd0", "cmd1"].map(|host| Broken::stub(&bed, host, "/usr/bin/squeue", script));
    let (begun, mut looks) = (Instant::now(), 0);
    while looks < 6 {
        assert!(begun.elapsed() < Duration::from_secs(120), "{looks} looks: some of six would be empty");
        looks = bed.sh("cmd0", "cat /run/real/count 2>/dev/null | wc -l").trim().parse().unwrap();
        // Also after the last one, which may be empty.
        throughout("empty", Duration::from_secs(1), || states(&runner, std::slice::from_ref(&id)), |seen| *seen == ["running"]);
    }
}

/// Restarts slurmctld as after a crash.
fn crash_slurmctld(bed: &Bed, meanwhile: &str) {
    let fault = bed.fault("stop-daemon", "ctl", Some("slurmctld"));
    bed.sh("ctl", meanwhile);
    fault.mend();
    until("Slurm to answer again", 40, || bed.exec("cmd0", &["squeue"]).status.success(), |answers| *answers);
}

#[test]
fn slurmctld_that_starts_anew_says_nothing_empty_and_nothing_ends() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let runner = Runner::start(&bed, &[PORTLESS]);
    let jobs: Vec<String> = (0..3).map(|_| runner.api.submit("alice", PORTLESS.0, &json!({"seconds": "600"}))).collect();
    jobs.iter().for_each(|id| drop(runner.wait_for(id, "running", 20)));
    // Slurm writes its state down every few seconds; what it has not written, a crash makes it forget (see below).
    bed.sh("ctl", &format!("rm -f {}/slurm/state/job_state", bed.get("BED_MOUNT")));
    for name in queue.jobs().keys() {
        bed.exec("ctl", &["scontrol", "update", &format!("JobName={name}"), "Comment=saved"]);
        let saved = format!("grep -aqF {name} {}/slurm/state/job_state", bed.get("BED_MOUNT"));
        until("Slurm to save its state", 20, || bed.exec("ctl", &["bash", "-c", &saved]).status.success(), |saved| *saved);
    }
    let looker = "for i in $(seq 250); do out=$(squeue --noheader --format=%A 2>/dev/null); echo \"$? $(wc -w <<<\"$out\")\"; \
                  sleep 0.01; done | sort | uniq -c";
    let answers = thread::scope(|scope| {
        let looks = scope.spawn(|| bed.sh("cmd1", looker));
        (0..2).for_each(|_| crash_slurmctld(&bed, "sleep 0.3"));
        throughout("restarted", Duration::from_secs(2), || states(&runner, &jobs), |seen| seen.iter().all(|s| s == "running"));
        looks.join().unwrap()
    });
    println!("answers of squeue (times, exit code, jobs) around two restarts:\n{answers}");
    let good: Vec<&str> = answers.lines().filter_map(|line| line.trim().split_once(" 0 ")).map(|(_, jobs)| jobs).collect();
    assert_eq!(good, ["3"], "every good answer was whole: {answers}");
}

#[test]
fn a_job_that_slurm_itself_forgot_in_a_crash_is_finished_as_unknown() {
    let bed = Bed::take();
    let runner = Runner::start(&bed, &[SERVICE]);
    let state = format!("{}/slurm/state", bed.get("BED_MOUNT"));
    bed.sh("ctl", &format!("rm -rf {state}.old; cp -a {state} {state}.old"));
    let id = runner.api.submit("alice", SERVICE.0, &json!({}));
    let job = runner.wait_for(&id, "available", 40);
    // Its saved state is a few seconds old when it dies; here it is older than the job.
    crash_slurmctld(&bed, &format!("rm -rf {state}; mv {state}.old {state}"));
    let job_now = runner.wait_for(&id, "finished", 30);
    assert_eq!(job_now["outcome"], "unknown", "{job_now:#}");
    until("its rules to be gone", 15, || forwardings_of(&bed, &id), Vec::is_empty);
    // Slurm ends what it does not know, so nothing of it runs on in secret; and it counts its ids on from the older state.
    let node = job["details"]["NodeList"].as_str().unwrap().to_owned();
    until("its processes to be gone", 60, || bed.exec(&node, &["pgrep", "-f", "http.server"]).stdout, Vec::is_empty);
    let next = runner.api.submit("alice", SERVICE.0, &json!({}));
    assert_eq!(slurm_id(&runner, &next), job["scheduler-job-id"], "the same id is another job now");
    runner.wait_for(&next, "available", 40);
    assert_eq!(runner.api.job(&id)["state"], "finished");
}

/// How sbatch loses its answer, by a word in the script. The job is in Slurm each time.
const LOST: [(&str, &str); 6] = [
    ("says-nothing", "exit 0"),
    ("says-255", "exit 255"),
    ("babbles", "echo 'Submitted, I think'; exit 0"),
    ("complains-afterwards", "cat /tmp/answer.$$; echo 'sudo: cannot write the log' >&2; exit 1"),
    ("is-killed", "kill -KILL $$"),
    ("hangs", HANG),
];

const ANSWERING: (&str, &str) =
    ("answering.txt", "#!/bin/bash\n#SBATCH --time=10 --nodes=1\n# sbatch {{word}}\nexec sleep 600\n");

/// A stub of sbatch that goes wrong as the script says, after the real one has taken it (or before, for words with `before`).
fn forgetful<'b>(bed: &'b Bed, host: &str, words: &[(&str, &str)]) -> Broken<'b> {
    let case = |(word, then): &(&str, &str)| {
        let takes = if word.starts_with("before") { "" } else { "\"$real\" \"$@\" <<<\"$script\" >/tmp/answer.$$;" };
        format!("*'# sbatch {word}'*) {takes} {then} ;;\n")
    };
    let cases: String = words.iter().map(case).collect();
    Broken::stub(
        bed,
        host,
        "/usr/bin/sbatch",
        &format!("script=$(cat)\ncase $script in\n{cases}*) exec \"$real\" \"$@\" <<<\"$script\" ;;\nesac"),
    )
}

fn submit_words(runner: &Runner, words: &[&str]) -> Vec<Reply> {
    thread::scope(|scope| {
        let post = |word: &str| submit(runner, ANSWERING.0, &json!({"word": word}));
        let threads: Vec<_> = words.iter().map(|word| scope.spawn(move || post(word))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn a_job_whose_answer_sbatch_lost_is_found_by_its_name() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let runner = Runner::start(&bed, &[ANSWERING]);
    let _stubs = ["cmd0", "cmd1"].map(|host| forgetful(&bed, host, &LOST));
    let words = LOST.map(|(word, _)| word);
    let replies = submit_words(&runner, &words);
    for (word, reply) in words.iter().zip(&replies) {
        assert_eq!(reply.status, 200, "sbatch that {word}: {reply:#?}");
    }
    assert_accepted_is_in_slurm(&runner, &queue, &accepted(&replies));
    assert_eq!(queue.jobs().len(), words.len(), "nothing was submitted twice");
    assert_eq!(runner.log().matches("looking for it by its name").count(), words.len());
}

#[test]
fn a_job_whose_ssh_session_was_cut_after_sbatch_is_found_by_its_name() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let runner = Runner::start(&bed, &[ANSWERING]);
    let stub = forgetful(&bed, "cmd0", &[("hangs", HANG)]);
    let replies = thread::scope(|scope| {
        let posted = scope.spawn(|| submit_words(&runner, &["hangs", "hangs"]));
        until("Slurm to have them", 20, || queue.jobs().len(), |count| *count == 2);
        bed.exec("cmd0", &["pkill", "-KILL", "-f", "sshd: bwvisurunner"]);
        posted.join().unwrap()
    });
    drop(stub);
    assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), [200, 200], "{replies:#?}");
    assert_accepted_is_in_slurm(&runner, &queue, &accepted(&replies));
    assert_eq!(queue.jobs().len(), 2);
}

#[test]
fn a_command_node_that_dies_under_sbatch_costs_at_most_an_honest_refusal() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let runner = Runner::start(&bed, &[ANSWERING]);
    let _stub = forgetful(&bed, "cmd0", &[("after", HANG), ("before", HANG)]);
    let (replies, _down) = thread::scope(|scope| {
        let posted = scope.spawn(|| submit_words(&runner, &["after", "before"]));
        until("Slurm to have the first", 20, || queue.jobs().len(), |count| *count == 1);
        let hanging = || String::from_utf8_lossy(&bed.exec("cmd0", &["pgrep", "-xcf", "sleep 3611"]).stdout).trim().to_owned();
        until("both to hang", 20, hanging, |count| count == "2");
        let down = bed.fault("stop-host", "cmd0", None);
        (posted.join().unwrap(), down)
    });
    let statuses: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [200, 503], "what Slurm has is found through the other node: {replies:#?}");
    let other = submit(&runner, ANSWERING.0, &json!({"word": "well"}));
    assert_eq!(other.status, 200, "{other:#?}");
    let mut accepted = accepted(&replies);
    accepted.push(other.body["job-id"].as_str().unwrap().to_owned());
    let queue_is = |expected: usize| assert_eq!(queue.jobs().len(), expected, "nothing was submitted twice");
    queue_is(2);
    drop(_down);
    assert_accepted_is_in_slurm(&runner, &queue, &accepted);
    queue_is(2);
}

#[test]
fn a_command_node_whose_disks_are_full_still_submits() {
    let bed = Bed::take();
    let queue = Queue::from_now(&bed);
    let runner = Runner::start(&bed, &[SERVICE]);
    let fill = |folder: &str| format!("! dd if=/dev/zero of={folder}/full bs=4k 2>/dev/null;");
    let fresh = |folder: &str| format!("mount -t tmpfs -o size=4k,mode=1777 full {folder}; {}", fill(folder));
    let breaks = format!(
        "set -e; rm -rf /run/real; mount -o remount,size=64k /run; {} {} {}",
        fill("/run"),
        fresh("/tmp"),
        fresh("/var/tmp")
    );
    let mends = "rm -f /run/full; mount -o remount,size=16m /run; umount /tmp /var/tmp";
    let _full = ["cmd0", "cmd1"].map(|host| Broken::by(&bed, host, &breaks, mends));
    let complaint =
        bed.exec("cmd0", &["bash", "-c", "for f in /run /tmp /var/tmp; do echo more >$f/more && exit 3; done; exit 0"]);
    assert!(complaint.status.success(), "the disks were to be full: {complaint:?}");
    let ids: Vec<String> = (0..3).map(|_| runner.api.submit("alice", SERVICE.0, &json!({}))).collect();
    ids.iter().for_each(|id| drop(runner.wait_for(id, "available", 40)));
    assert_accepted_is_in_slurm(&runner, &queue, &ids);
}

#[test]
fn a_compute_node_that_vanishes_ends_or_requeues_its_jobs_and_their_ports_are_free() {
    let bed = Bed::take();
    // Slurm's own default is five minutes.
    let conf = Broken::slurm_conf(&bed, "SlurmdTimeout=5", true);
    let stays_dead = SERVICE.1.replace("--nodes=1", "--nodes=1 --nodelist=c0 --no-requeue");
    // `--prefer` of newer Slurms would say it better: it begins on c0, and may begin anew elsewhere.
    let comes_back = HELD.1.to_owned();
    let runner = Runner::start(&bed, &[("stays_dead.txt", &stays_dead), ("comes_back.txt", &comes_back)]);
    let dead = runner.api.submit("alice", "stays_dead.txt", &json!({}));
    let back = runner.api.submit("alice", "comes_back.txt", &json!({}));
    let back_in_slurm = slurm_id(&runner, &back);
    bed.sh("cmd0", &format!("scontrol update JobId={back_in_slurm} ReqNodeList=c0 && scontrol release {back_in_slurm}"));
    for id in [&dead, &back] {
        assert_eq!(runner.wait_for(id, "available", 40)["details"]["NodeList"], "c0");
    }
    let begun = Instant::now();
    let down = bed.fault("stop-host", "c0", None);
    let ended = runner.wait_for(&dead, "finished", 60);
    println!("node-fail was shown {:?} after the node died", begun.elapsed());
    assert_eq!(ended["outcome"], "node-fail", "{ended:#}");
    runner.wait_for(&back, "submitted", 30);
    until("all rules to be gone", 15, || all_forwardings(&bed), Vec::is_empty);
    until("all ports to be free", 15, || records(&bed, "grants/"), String::is_empty);
    // Slurm lets a requeued job wait for two minutes.
    bed.sh("cmd0", &format!("scontrol update JobId={back_in_slurm} ReqNodeList=c1 StartTime=now"));
    let job = runner.wait_for(&back, "available", 60);
    assert_eq!((&job["details"]["NodeList"], &job["scheduler-job-id"]), (&json!("c1"), &json!(back_in_slurm)), "{job:#}");
    drop((down, conf));
}

#[test]
fn a_strangers_listener_on_a_granted_port_passes_for_the_application_until_that_fails() {
    let bed = Bed::take();
    // The application comes a moment after its ports: time enough for a stranger on the same node.
    let late = "#!/bin/bash\n#SBATCH --time=10 --nodes=1 --nodelist=c2\n#KEYHOLE-REQUEST-PORTS 1\n\
                echo \"port $KEYHOLE_PORT0\"\nwhile [ ! -e go ]; do sleep 0.1; done\nexec python3 -m http.server \"$KEYHOLE_PORT0\"\n";
    let runner = Runner::start(&bed, &[("late.txt", late)]);
    let _ = std::fs::remove_file(bed.home("alice").join("go"));
    let id = runner.api.submit("alice", "late.txt", &json!({}));
    let log = until("the ports", 30, || runner.job_log("alice", &id), |log| log.contains("port "));
    let port = log.trim().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(runner.api.job(&id)["state"], "running");
    let stranger = bed.spawn("c2", &["-u", "bob", "sh", "-c", &format!("cd /; exec python3 -m http.server {port}")]);
    // This is what cannot be told apart: something accepts connections where the job should.
    let job = runner.wait_for(&id, "available", 20);
    assert!(fetch(&bed, &job, "/etc/hostname").is_ok(), "users see what the stranger serves");
    bed.sh_as("c2", "alice", "touch go");
    let job = runner.wait_for(&id, "finished", 30);
    assert_eq!(job["outcome"], "failed", "{job:#}");
    assert!(runner.job_log("alice", &id).contains("Address already in use"), "{}", runner.job_log("alice", &id));
    until("its rules to be gone", 15, || forwardings_of(&bed, &id), Vec::is_empty);
    // The port is taken now, and is not given again as long as it is.
    drop(stranger);
}
