//! Several hosts on this one: network namespaces with a link between each two of them, which can be cut.
//!
//! As root, or by a user namespace where users may have those. A namespace lives as long as the process that holds it, so nothing is left
//! behind, whatever happens to the test.

use crate::process::Process;
use crate::tool::{Tool, tool};
use std::path::Path;

/// See the module.
#[derive(Debug)]
pub struct Hosts {
    holders: Vec<Process>,
    /// The holder whose user namespace the others are in; none as root.
    user: Option<u32>,
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

impl Hosts {
    /// So many hosts, all linked to each other; their logs go to `dir`.
    ///
    /// # Panics
    /// If this machine gives nobody network namespaces.
    #[must_use]
    pub fn new(count: usize, dir: &Path) -> Hosts {
        let probe = if is_root() { tool("unshare").arg("-n") } else { tool("unshare").args(["-Ur", "-n"]) };
        let probe = probe.args(["ip", "link", "set", "lo", "up"]).run_any();
        assert!(
            probe.status.success(),
            "THIS TEST CANNOT RUN HERE: it needs network namespaces, as root or with user namespaces for users \
             (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), and the command `ip` (iproute2)\n{}",
            probe.describe()
        );
        let mut hosts = Hosts { holders: Vec::new(), user: None };
        for i in 0..count {
            let mut command = hosts.in_user().arg("unshare");
            if !is_root() && i == 0 {
                command = tool("unshare").args(["-Ur"]);
            }
            let log = dir.join(format!("host{i}.log"));
            let mut process = Process::start(command.args(["-n", "sleep", "100000"]).into_command(), &log);
            // Until then it is in this test's own namespace.
            let (id, own) =
                (process.id(), std::fs::read_link("/proc/self/ns/net").expect("namespaces of this process"));
            process.wait_until("a namespace", || {
                std::fs::read_link(format!("/proc/{id}/ns/net")).is_ok_and(|ns| ns != own)
                    && std::fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim() == "sleep")
            });
            if !is_root() && i == 0 {
                hosts.user = Some(id);
            }
            hosts.holders.push(process);
            hosts.on(i).args(["ip", "link", "set", "lo", "up"]).run();
        }
        for b in 0..count {
            (0..b).for_each(|a| hosts.link(a, b));
        }
        hosts
    }

    /// Something that is run with the rights of the namespaces' owner: the program's name follows as the next argument.
    fn in_user(&self) -> Tool {
        match self.user {
            Some(id) => tool("nsenter").args(["-t", &id.to_string(), "-U", "--preserve-credentials"]),
            None => tool("env"),
        }
    }

    /// A program on a host: its name follows as the next argument.
    #[must_use]
    pub fn on(&self, host: usize) -> Tool {
        let id = self.holders[host].id().to_string();
        match self.user {
            Some(_) => tool("nsenter").args(["-t", &id, "-U", "--preserve-credentials", "-n"]),
            None => tool("nsenter").args(["-t", &id, "-n"]),
        }
    }

    fn link(&self, a: usize, b: usize) {
        let (near, far, peer) = (format!("to{b}"), format!("to{a}"), self.holders[b].id().to_string());
        let add = ["ip", "link", "add", &near, "type", "veth", "peer", "name", &far, "netns", &peer];
        self.on(a).args(add).run();
        for (host, other, device) in [(a, b, &near), (b, a, &far)] {
            let address = format!("{}/24", self.address(host, other));
            self.on(host).args(["ip", "address", "add", &address, "dev", device]).run();
            self.on(host).args(["ip", "link", "set", device, "up"]).run();
        }
    }

    /// Where a host is reached from another one.
    #[must_use]
    pub fn address(&self, host: usize, from: usize) -> String {
        format!("10.77.{}.{}", host.min(from) * 10 + host.max(from), host + 1)
    }

    /// Cuts the link between two hosts, or heals it.
    pub fn set_link(&self, a: usize, b: usize, up: bool) {
        self.on(a).args(["ip", "link", "set", &format!("to{b}"), if up { "up" } else { "down" }]).run();
    }
}
