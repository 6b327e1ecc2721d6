//! The comparison of brink with its peers in one case, and the output of all comparisons.

use serde_json::{Map, Value, json};

use super::case::{Case, Load};
use super::figures::Figures;
use super::peer::Peer;

/// A case with the medians of brink and of its peers.
pub(super) struct Compared {
    pub(super) case: Case,
    pub(super) brink: Figures,
    pub(super) peers: Vec<(Peer, Figures)>,
}

impl Compared {
    /// What brink must reach in this case.
    fn targets(&self) -> Vec<Target> {
        let rates = self.peers.iter().filter_map(|(peer, figures)| self.rate_target(*peer, figures));
        self.cpu_target().into_iter().chain(rates).collect()
    }

    fn cpu_target(&self) -> Option<Target> {
        Some(Target::Cpu { most: self.case.cpu_target_us()?, found: self.brink.server_us() })
    }

    fn rate_target(&self, peer: Peer, figures: &Figures) -> Option<Target> {
        let least = self.case.rate_target(peer)?;
        Some(Target::Rate { least, found: self.brink.rate_ratio(figures) })
    }

    /// Whether p99 is lower than a peer's, where that must be: in replicated writes, compared with etcd's gateway.
    fn has_lower_p99(&self, peer: Peer, figures: &Figures) -> Option<bool> {
        let counts = self.case.load == Load::Writes && peer == Peer::EtcdJson;
        counts.then_some(self.brink.p99_ms < figures.p99_ms)
    }

    fn json(&self) -> Value {
        let cpu = self.cpu_target();
        let peer = |(peer, figures): &(Peer, Figures)| (peer.name().to_owned(), self.peer_json(*peer, figures));
        json!({
            "load": title(self.case.load), "clients": self.case.clients, "brink": self.brink.json(),
            "cpu_target_us": self.case.cpu_target_us(), "cpu_met": cpu.map(Target::is_met),
            "peers": self.peers.iter().map(peer).collect::<Map<_, _>>(),
        })
    }

    fn peer_json(&self, peer: Peer, figures: &Figures) -> Value {
        json!({
            "figures": figures.json(), "ratio": self.brink.rate_ratio(figures),
            "cpu_ratio": self.brink.cpu_ratio(figures), "target": self.case.rate_target(peer),
            "met": self.rate_target(peer, figures).map(Target::is_met),
            "p99_lower": self.brink.p99_ms < figures.p99_ms,
        })
    }

    /// The lines of the table: brink's, and one for each peer.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let verdict = self.cpu_target().map(Target::verdict).unwrap_or_default();
        self.add_lines(&mut lines, Peer::Brink, &self.brink, &verdict);
        for (peer, figures) in &self.peers {
            let rate = self.rate_target(*peer, figures).map(Target::verdict);
            let p99 = self.has_lower_p99(*peer, figures).map(|is_lower| match is_lower {
                true => "p99 lower".to_owned(),
                false => "p99 NOT lower".to_owned(),
            });
            let verdict: Vec<String> = rate.into_iter().chain(p99).collect();
            self.add_lines(&mut lines, *peer, figures, &verdict.join(", "));
        }
        lines
    }

    fn add_lines(&self, lines: &mut Vec<String>, peer: Peer, figures: &Figures, verdict: &str) {
        let (clients, name) = (self.case.clients, peer.name());
        let Figures { rate, p50_ms, p99_ms, errors, .. } = figures;
        let (server_us, loader_us) = (figures.server_us(), figures.loader_us());
        let ratios = match peer {
            Peer::Brink => format!("{:>7} {:>7}", "", ""),
            _ => format!("{:>6.2}× {:>6.2}×", self.brink.rate_ratio(figures), self.brink.cpu_ratio(figures)),
        };
        let row = format!("{clients:>7} {name:<9} {rate:>9.0} {p50_ms:>8.2} {p99_ms:>8.2} {server_us:>9.1}");
        lines.push(format!("{row} {loader_us:>9.1} {ratios}  {verdict}").trim_end().to_owned());
        if *errors > 0.0 {
            lines.push(format!("{:>7} {name} answered {errors} requests of a run with errors", ""));
        }
        if figures.is_loader_busy() {
            lines.push(format!("{:>7} the loader was the bottleneck; {name} may be faster", ""));
        }
    }
}

/// What brink must reach, and what was found.
#[derive(Debug, Clone, Copy)]
enum Target {
    /// The ratio of brink's rate to a peer's.
    Rate { least: f64, found: f64 },
    /// The CPU time of a request in µs.
    Cpu { most: f64, found: f64 },
}

impl Target {
    fn is_met(self) -> bool {
        match self {
            Self::Rate { least, found } => found >= least,
            Self::Cpu { most, found } => found <= most,
        }
    }

    fn verdict(self) -> String {
        let (target, excess) = match self {
            Self::Rate { least, found } => (format!("{least:.1}×"), 1.0 - found / least),
            Self::Cpu { most, found } => (format!("{most:.0} µs"), found / most - 1.0),
        };
        if self.is_met() { format!("{target} met") } else { format!("{target} missed by {:.0} %", 100.0 * excess) }
    }
}

fn title(load: Load) -> &'static str {
    match load {
        Load::Writes => "Writes, three nodes",
        Load::StrongReads => "Reads from the leader, three nodes: linearizable ones of brink and etcd",
        Load::LocalReads => "Local reads from a follower, three nodes",
        Load::SingleWrites => "Writes, a single node",
    }
}

/// All cases as a JSON list.
pub(super) fn json(compared: &[Compared]) -> Value {
    compared.iter().map(Compared::json).collect()
}

/// Prints a table for each load, and a summary.
pub(super) fn print(compared: &[Compared]) {
    for load in [Load::Writes, Load::StrongReads, Load::LocalReads, Load::SingleWrites] {
        let cases: Vec<&Compared> = compared.iter().filter(|compared| compared.case.load == load).collect();
        if !cases.is_empty() {
            println!("\n{}\n{}", title(load), table(&cases));
        }
    }
    println!("\n{}", summary(compared));
}

fn table(cases: &[&Compared]) -> String {
    let head = format!(
        "{:>7} {:<9} {:>9} {:>8} {:>8} {:>9} {:>9} {:>7} {:>7}  {}",
        "CLIENTS", "SERVER", "PER SEC", "P50 MS", "P99 MS", "NODES µs", "LOADER µs", "RATE", "CPU", "TARGET"
    );
    let lines = cases.iter().flat_map(|compared| compared.lines());
    std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n")
}

/// How many targets were missed.
fn summary(compared: &[Compared]) -> String {
    let targets: Vec<Target> = compared.iter().flat_map(Compared::targets).collect();
    let missed = targets.iter().filter(|target| !target.is_met()).count();
    let p99 = |compared: &Compared| {
        compared.peers.iter().any(|(peer, figures)| compared.has_lower_p99(*peer, figures) == Some(false))
    };
    let slow = compared.iter().filter(|compared| p99(compared)).count();
    format!(
        "RATE is brink's divided by the peer's, CPU the peer's time of a request over all nodes divided by brink's\n\
         {missed} of {} targets missed; p99 is not lower than that of etcd's gateway in {slow} cases of replicated writes",
        targets.len()
    )
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::run;
    use super::*;

    fn compared(clients: u32, peers: &[(Peer, Figures)]) -> Compared {
        Compared { case: Case { load: Load::Writes, clients }, brink: run(12_000.0, 2.0), peers: peers.to_vec() }
    }

    #[test]
    fn a_missed_target_says_by_how_much() {
        let compared = compared(1, &[(Peer::EtcdJson, run(10_000.0, 3.0)), (Peer::Redis, run(6_000.0, 1.0))]);
        let lines = compared.lines();
        assert!(lines[0].ends_with("450 µs met"), "{lines:?}");
        assert!(lines[1].ends_with("1.20×   1.20×  1.6× missed by 25 %, p99 lower"), "{lines:?}");
        assert!(lines[2].ends_with("2.00×   2.00×"), "{lines:?}");
        assert!(
            summary(&[compared]).contains("1 of 2 targets missed; p99 is not lower than that of etcd's gateway in 0")
        );
    }

    #[test]
    fn a_loss_in_p99_and_in_cpu_is_told() {
        let compared = compared(64, &[(Peer::EtcdJson, run(3_000.0, 2.0)), (Peer::Nats, run(12_000.0, 1.0))]);
        let lines = compared.lines();
        assert!(lines[0].ends_with("40 µs missed by 108 %"), "{lines:?}");
        assert!(lines[1].ends_with("3.5× met, p99 NOT lower"), "{lines:?}");
        assert!(lines[2].ends_with("1.0× met"), "{lines:?}");
        assert!(
            summary(&[compared]).contains("1 of 3 targets missed; p99 is not lower than that of etcd's gateway in 1")
        );
    }

    #[test]
    fn json_carries_what_the_table_does() {
        let json = compared(16, &[(Peer::Etcd, run(6_000.0, 3.0))]).json();
        assert_eq!((&json["clients"], &json["brink"]["per_second"]), (&json!(16), &json!(12_000.0)));
        assert_eq!((&json["cpu_target_us"], &json["cpu_met"]), (&json!(90.0), &json!(true)));
        let etcd = &json["peers"]["etcd"];
        assert_eq!((&etcd["ratio"], &etcd["cpu_ratio"]), (&json!(2.0), &json!(2.0)));
        assert_eq!((&etcd["target"], &etcd["met"], &etcd["p99_lower"]), (&json!(2.5), &json!(false), &json!(true)));
        assert_eq!(etcd["figures"]["p99_ms"], json!(3.0));
    }
}
