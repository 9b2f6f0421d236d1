//! Containers that end before anybody can look: every exit is reported, and truly.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use limpet_tests::{Fleet, Image, Layer, run};

const RUNS: usize = 200;

/// A static program that exits with 7 and does nothing else.
fn image(fleet: &Fleet) -> Image {
    let source = fleet.lab.file("seven.c", "int main(void) { return 7; }\n");
    let program = fleet.lab.path("seven");
    let (source, out) = (source.display().to_string(), program.display().to_string());
    run("cc", &["-static", "-O2", "-o", &out, &source]);
    let layer = Layer::new().file("seven", 0o755, std::fs::read(program).unwrap());
    let mut image = Image::of(vec![layer.gzip()]);
    image.run = limpet_tests::json!({"Entrypoint": ["/seven"]});
    image
}

fn two_hundred_exits(deployment: &str, fleet: &Fleet) {
    let replicas = format!("--replicas={RUNS}");
    fleet.controller.ok(&[
        "run",
        deployment,
        "--image=seven",
        &replicas,
        "--restart=never",
        "--detach",
    ]);
    // However slow the machine is: some more of them, again and again.
    for some in (20..=RUNS).step_by(20) {
        fleet.eventually(&format!("{some} ends of {RUNS}"), || {
            let all = fleet.workloads(deployment);
            let ended = all.iter().filter(|workload| workload["phase"] == "failed");
            (ended.count() >= some).then_some(())
        });
    }
    let ended = fleet.until_phases(deployment, &["failed"; RUNS]);
    for workload in &ended {
        assert_eq!(workload["exit"], limpet_tests::json!({"code": 7}), "{workload}");
    }
    fleet.eventually("an event of each", || {
        let story = fleet.story(deployment);
        let told = story.iter().filter(|line| *line == "exited exited with 7").count();
        assert!(told <= RUNS, "{told} events of {RUNS} exits");
        (told == RUNS).then_some(())
    });
    fleet.eventually("no shim", || fleet.agents[0].shims().is_empty().then_some(()));
    fleet.controller.ok(&["delete", deployment]);
}

#[test]
fn two_hundred_exits_within_a_millisecond_idle_and_busy() {
    let fleet = Fleet::start(1);
    fleet.registry.push("library/seven", "latest", &image(&fleet));
    two_hundred_exits("idle", &fleet);
    let busy = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..cores {
            scope.spawn(|| {
                while busy.load(Ordering::Relaxed) {
                    std::hint::spin_loop()
                }
            });
        }
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            two_hundred_exits("busy", &fleet)
        }));
        busy.store(false, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn a_shim_that_is_killed_leaves_a_container_that_is_followed_and_an_exit_that_is_not_invented() {
    let fleet = Fleet::start(1);
    fleet.controller.ok(&["run", "web", "--image=box"]);
    let before = fleet.until_phases("web", &["running"]).remove(0);
    let [shim] = fleet.agents[0].shims()[..] else { panic!("one shim") };
    run("kill", &["-9", &shim.to_string()]);
    // The container runs on: it is nobody's child now, and still stopped and replaced when it ends.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(fleet.workloads("web")[0]["pid"], before["pid"]);
    let done = Command::new("kill").args(["-9", &before["pid"].to_string()]).status().unwrap();
    assert!(done.success());
    fleet.eventually("its replacement", || {
        let now = fleet.workloads("web").remove(0);
        (now["phase"] == "running" && now["pid"] != before["pid"]).then_some(())
    });
    let story = fleet.story("web");
    assert!(story.contains(&"exited ended unseen".to_owned()), "{story:#?}");
}
