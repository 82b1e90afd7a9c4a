//! The shipped unit under a real systemd, in a container: whatever systemd does to the server, agents go on, and count.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::crashes::tell;
use crate::rig::{PATIENCE, lines_of};

const UNIT: &str = include_str!("../../../../dist/outlive.service");

/// What an administrator would lay down by `systemctl edit`.
const EDITED: &str = "[Service]
ExecStart=
ExecStart=/opt/outlive serve --data /var/lib/outlive
Environment=HOME=/root OUTLIVE_RUNNING_MAX=1 OUTLIVE_MIN_FREE_BYTES=0 OUTLIVE_GRACE_S=0
";

/// Tells through a pipe that systemd can be spoken to.
const BOOTED: &str = "[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo booted > /root/booted'
";

/// Limits as the machine has them: raising one may be forbidden even to root.
const CONTAINERS: &str = "[containers]
default_ulimits=[\"nofile=20000:20000\",\"nproc=4096:4096\"]
[engine]
runtime=\"runc\"
cgroup_manager=\"cgroupfs\"
events_logger=\"file\"
";

/// A container whose first process is systemd; gone when dropped.
struct Machine {
    dir: tempfile::TempDir,
    name: String,
    journal: Option<(Child, Receiver<String>)>,
}

impl Machine {
    /// None: this machine cannot have one, which is told.
    fn start() -> Option<Self> {
        let there = |path: &&str| fs::exists(path).unwrap_or(false);
        let needed = ["/usr/bin/podman", "/usr/sbin/runc", "/usr/lib/systemd/systemd"];
        let missing = needed.iter().find(|path| !there(path));
        if let Some(missing) = missing {
            tell(&format!("NOT COVERED: the unit under a real systemd: {missing} is missing"));
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            tell("NOT COVERED: the unit under a real systemd: this needs root");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("outlive-sd-").tempdir().expect("a directory");
        let name = dir.path().file_name().expect("a name").to_string_lossy().to_lowercase();
        let machine = Self { dir, name, journal: None };
        machine.furnish();
        let root = machine.path("rootfs").display().to_string();
        let how =
            ["--systemd=always", "--network=none", "--volume=/usr:/usr:ro", "--rootfs", &root];
        let mut podman = machine.podman();
        podman.args(["run", "--detach", "--name", &machine.name]).args(how);
        podman.args(["/lib/systemd/systemd", "--unit=basic.target"]);
        succeeded("podman run", podman.output().expect("podman runs"));
        let booted = machine.path("rootfs/root/booted");
        let (sender, told) = channel();
        std::thread::spawn(move || sender.send(fs::read_to_string(booted)));
        let told = told.recv_timeout(PATIENCE).expect("systemd comes up").expect("a pipe");
        assert_eq!(told, "booted\n");
        Some(machine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A root directory of nothing but this machine's programs, the unit and ours.
    fn furnish(&self) {
        let root = self.path("rootfs");
        let unit = root.join("etc/systemd/system");
        for part in ["proc", "sys", "dev", "run", "tmp", "var/lib", "root", "opt", "usr"] {
            fs::create_dir_all(root.join(part)).expect("a directory");
        }
        for part in ["outlive.service.d", "basic.target.wants"] {
            fs::create_dir_all(unit.join(part)).expect("a directory");
        }
        let wanted = unit.join("basic.target.wants/booted.service");
        symlink("/etc/systemd/system/booted.service", wanted).expect("a link");
        fs::write(unit.join("booted.service"), BOOTED).expect("a file");
        let made = Command::new("mkfifo").arg(root.join("root/booted")).status();
        assert!(made.expect("mkfifo runs").success());
        for part in ["bin", "sbin", "lib", "lib64"] {
            symlink(Path::new("usr").join(part), root.join(part)).expect("a link");
        }
        for part in ["passwd", "group", "nsswitch.conf", "os-release"] {
            fs::copy(Path::new("/etc").join(part), root.join("etc").join(part)).expect("a copy");
        }
        for program in ["outlive", "outlive.new"] {
            fs::copy(env!("CARGO_BIN_EXE_outlive"), root.join("opt").join(program))
                .expect("a copy");
        }
        fs::write(unit.join("outlive.service"), UNIT).expect("a file");
        fs::write(unit.join("outlive.service.d/edited.conf"), EDITED).expect("a file");
        fs::write(self.path("containers.conf"), CONTAINERS).expect("a file");
    }

    fn podman(&self) -> Command {
        let mut podman = Command::new("podman");
        podman.env("CONTAINERS_CONF", self.path("containers.conf")).stdin(Stdio::null());
        podman.arg("--root").arg(self.path("storage")).arg("--runroot").arg(self.path("running"));
        podman
    }

    /// What a script prints that must succeed in the container.
    fn sh(&self, script: &str) -> String {
        let mut podman = self.podman();
        podman.args([
            "exec",
            "--env=HOME=/root",
            "--env=OUTLIVE_DATA=/var/lib/outlive",
            &self.name,
        ]);
        let output = podman.args(["sh", "-ec", script]).output().expect("podman runs");
        succeeded(script, output)
    }

    /// Follows what the server tells, from its first word.
    fn follow_journal(&mut self) {
        let mut podman = self.podman();
        podman.args(["exec", &self.name, "journalctl", "--follow", "--lines=all", "--output=cat"]);
        podman.arg("--unit=outlive").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = podman.spawn().expect("podman runs");
        let lines = lines_of(child.stdout.take().expect("piped"));
        self.journal = Some((child, lines));
    }

    fn wait_ready(&self, what: &str) {
        let (_, lines) = self.journal.as_ref().expect("followed");
        let mut told = Vec::new();
        loop {
            match lines.recv_timeout(PATIENCE) {
                Ok(line) if line.starts_with("ready: ") => {
                    assert!(line.starts_with(what), "{line}");
                    return;
                }
                Ok(line) => told.push(line),
                Err(error) => panic!("never ready ({error}): {told:#?}"),
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.podman().args(["rm", "--force", "--time=0", &self.name]).output());
        if let Some((mut child, _)) = self.journal.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn succeeded(what: &str, output: Output) -> String {
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{what}: {told}");
    String::from_utf8(output.stdout).expect("text").trim().to_string()
}

// Proves I5 where it is needed most: systemd ends whole services, and this one only in part.
#[test]
fn under_systemd_agents_go_on_through_stop_restart_upgrade_and_kill_and_keep_their_slots() {
    let Some(mut machine) = Machine::start() else { return };
    machine.sh("systemctl start outlive");
    machine.follow_journal();
    machine.wait_ready("ready: 0 jobs recovered");
    machine.sh(
        "mkfifo /root/here /root/gate; mkdir /root/source; cd /root/source; git init --quiet;
        git -c user.name=a -c user.email=a@b commit --quiet --allow-empty --message=x;
        /opt/outlive repo add r /root/source",
    );
    let id = machine.sh("/opt/outlive submit --repo r -- sh -c \
         'echo up; echo $$ > /root/here; read x < /root/gate; echo down'");
    let agent = machine.sh("cat /root/here");
    let next = machine.sh("/opt/outlive submit --repo r -- true");
    let stop = "systemctl stop outlive; systemctl show outlive -p Result -p ExecMainStatus";
    for action in ["restart", "kill", "stop", "upgrade"] {
        match action {
            "restart" => drop(machine.sh("systemctl restart outlive")),
            "kill" => drop(machine.sh("kill -9 $(systemctl show outlive -p MainPID --value)")),
            _ => {
                let told = machine.sh(stop);
                let well = told.contains("Result=success") && told.contains("ExecMainStatus=0");
                assert!(well, "{told}");
                let renew = "mv /opt/outlive.new /opt/outlive; ";
                let renew = if action == "upgrade" { renew } else { "" };
                machine.sh(&format!("kill -0 {agent}; {renew}systemctl start outlive"));
            }
        }
        machine.wait_ready("ready: 2 jobs recovered, 1 agent re-adopted");
        let jobs = machine.sh("/opt/outlive list");
        let is = |id: &str, state: &str| {
            jobs.lines().any(|line| line.starts_with(id) && line.contains(state))
        };
        assert!(is(&id, "running") && is(&next, "queued"), "{action}: its slot is taken: {jobs}");
        let group = machine.sh(&format!("cat /proc/{agent}/cgroup"));
        assert!(group.contains("/outlive.service"), "{action}: the unit's limits hold: {group}");
    }
    machine.sh("echo go > /root/gate");
    machine.sh(&format!("/opt/outlive wait {id}; /opt/outlive wait {next}"));
    assert_eq!(machine.sh(&format!("/opt/outlive output {id}")), "up\ndown");
}
