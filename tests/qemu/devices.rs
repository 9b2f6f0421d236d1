//! On a kernel without cgroup v1 a device is given for what was asked, and no other can be opened,
//! whoever makes a node of it.

use limpet_tests::{Board, Vm, eventually};

use crate::bay::Bay;

/// Opens, for writing, the nodes that root makes for it from outside.
const SCRIPT: &str = "until [ -e /dev/late ]; do sleep 1; done; for n in twin late; do \
    dd if=/dev/null of=/dev/$n conv=notrunc count=0 && echo opened $n; done; echo ended; sleep 100000";

pub(crate) fn guarded(bay: &Bay, board: Board, vm: &mut Vm) {
    let fleet = &bay.fleet;
    for (name, flags, opens) in [
        ("plain", &[][..], false),
        ("reader", &["--device=/dev/kmsg:r"], false),
        ("both", &["--device=/dev/kmsg"], true),
    ] {
        bay.run(board, name, &[flags, &["--", "sh", "-c", SCRIPT]].concat());
        let pid = fleet.until_phases(name, &["running"]).remove(0)["pid"].to_string();
        // /dev/zero, which every container has, and /dev/kmsg, which anybody may write who opens it.
        let dev = format!("/proc/{pid}/root/dev");
        let nodes = format!(
            "mknod {dev}/twin c 1 5 && mknod {dev}/late c 1 11 && chmod 666 {dev}/twin {dev}/late"
        );
        let made = vm.ssh(&bay.key, &nodes);
        assert_eq!(made.status, 0, "{made:?}");
        let said = eventually("the end of a script", || {
            let logs = fleet.controller.limpet(&["logs", name]);
            logs.out.contains("ended").then(|| logs.out + &logs.err)
        });
        println!("{name}: {said}");
        assert!(said.contains("opened twin"), "{name}: {said}");
        assert_eq!(said.contains("opened late"), opens, "{name}: {said}");
        assert_eq!(said.contains("/dev/late': Operation not permitted"), !opens, "{name}: {said}");
        fleet.controller.ok(&["delete", name]);
    }
}
