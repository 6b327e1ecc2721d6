//! Hosts for nodes: network namespaces on one bridge, with links that can be cut.
//!
//! The test runs in the machine's own namespace and reaches every host through the bridge, whatever links are cut. A cut
//! loses packets silently, as a real network does: the receiving host drops packets from the sender by an nftables rule.
//!
//! Each [`Hosts`] has a number that is unique on the machine; it holds a lock on a file for as long as its process lives.
//! Interface names and addresses are derived from the number. A new [`Hosts`] also removes the remains of dead processes.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::Place;
use crate::ports::try_lock;

/// Directory of the lock files, one for each number.
const LOCKS_DIR: &str = "/run/brink-test-hosts";

/// Directory of iproute2's namespaces.
const NAMESPACES_DIR: &str = "/run/netns";

/// Maximum number of [`Hosts`] on one machine.
const NUMBERS_MAX: u8 = 200;

/// The first two bytes of all addresses: a private range that few networks use.
const RANGE: &str = "10.213";

/// The port of every node.
const PORT: u16 = 8_000;

/// Hosts joined by a bridge. Dropping them removes them and kills the processes that still run there.
pub struct Hosts {
    number: u8,
    count: usize,
    _lock: File,
}

impl Hosts {
    /// Creates hosts.
    pub fn new(count: usize) -> Self {
        assert!(rustix::process::geteuid().is_root(), "network namespaces need root: run these tests as root");
        let (number, lock) = take_number();
        let hosts = Self { number, count, _lock: lock };
        let mut script = format!(
            "link add {bridge} type bridge\naddr add {RANGE}.{number}.254/24 dev {bridge}\nlink set {bridge} up\n",
            bridge = bridge(number),
        );
        for host in 0..count {
            let (name, port) = (namespace(number, host), format!("{}v{host}", bridge(number)));
            script.push_str(&format!(
                "netns add {name}\n\
                 link add {port} type veth peer name eth0 netns {name}\n\
                 link set {port} master {bridge} up\n\
                 netns exec {name} ip addr add {address}/24 dev eth0\n\
                 netns exec {name} ip link set eth0 up\n\
                 netns exec {name} ip link set lo up\n",
                bridge = bridge(number),
                address = hosts.address(host).ip(),
            ));
        }
        run(Command::new("ip").args(["-batch", "-"]), &script);
        for host in 0..count {
            hosts.filter(
                host,
                "table ip brink {\n set unheard { type ipv4_addr; }\n chain input {\n \
                 type filter hook input priority 0; policy accept;\n ip saddr @unheard drop;\n }\n}\n",
            );
        }
        hosts
    }

    /// A place for a node on each host.
    pub fn places(&self) -> Vec<Place> {
        let wrapper = |host| ["ip", "netns", "exec", &namespace(self.number, host)].map(str::to_owned).to_vec();
        (0..self.count).map(|host| Place { address: self.address(host), wrapper: wrapper(host) }).collect()
    }

    /// Cuts the link from one host to another. The opposite direction is not affected.
    pub fn cut(&self, from: usize, to: usize) {
        self.filter(to, &format!("add element ip brink unheard {{ {} }}\n", self.address(from).ip()));
    }

    /// Restores all links.
    pub fn heal(&self) {
        for host in 0..self.count {
            self.filter(host, "flush set ip brink unheard\n");
        }
    }

    fn address(&self, host: usize) -> SocketAddr {
        format!("{RANGE}.{}.{}:{PORT}", self.number, host + 1).parse().unwrap()
    }

    fn filter(&self, host: usize, rules: &str) {
        run(Command::new("ip").args(["netns", "exec", &namespace(self.number, host), "nft", "-f", "-"]), rules);
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        remove(self.number);
    }
}

fn bridge(number: u8) -> String {
    format!("bkt{number}")
}

fn namespace(number: u8, host: usize) -> String {
    format!("brink-test-{number}-{host}")
}

/// Takes a free number, and removes the remains of all free numbers.
fn take_number() -> (u8, File) {
    std::fs::create_dir_all(LOCKS_DIR).unwrap();
    let mut taken = None;
    for number in 0..NUMBERS_MAX {
        let path = Path::new(LOCKS_DIR).join(number.to_string());
        if taken.is_some() && !path.exists() {
            break;
        }
        let Some(file) = try_lock(&path) else { continue };
        remove(number);
        taken.get_or_insert((number, file));
    }
    taken.expect("a free number")
}

/// Removes the hosts of a number, and kills their processes.
fn remove(number: u8) {
    for name in names_in(NAMESPACES_DIR, &format!("brink-test-{number}-")) {
        let pids = output(Command::new("ip").args(["netns", "pids", &name]));
        for pid in String::from_utf8_lossy(&pids.stdout).lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            // The process may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
        output(Command::new("ip").args(["netns", "del", &name]));
    }
    let own = bridge(number);
    for interface in names_in("/sys/class/net", &own) {
        if interface == own || interface.starts_with(&format!("{own}v")) {
            output(Command::new("ip").args(["link", "del", &interface]));
        }
    }
}

fn names_in(dir: &str, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Runs a command that may fail, because the object to remove may be gone.
fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a command with a script on its standard input. Panics if it fails.
fn run(command: &mut Command, script: &str) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert!(ended.status.success(), "{command:?}: {}\n{script}", String::from_utf8_lossy(&ended.stderr));
}
