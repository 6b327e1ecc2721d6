//! The comparison of brink with its peers in one case, and the output of all comparisons.

use serde_json::{Map, Value, json};

use super::case::{Case, Load};
use super::peer::Peer;
use crate::figures::Figures;

/// A case with the medians of brink and of its peers.
pub(super) struct Compared {
    pub(super) case: Case,
    pub(super) brink: Figures,
    pub(super) peers: Vec<(Peer, Figures)>,
    /// The medians of brink and of its peers at a part of their own rates, if that was measured.
    pub(super) paced: Vec<(Peer, Figures)>,
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
        let counts = self.case.load == Load::Writes && self.case.nodes > 1 && peer == Peer::EtcdJson;
        counts.then_some(self.brink.p99_ms < figures.p99_ms)
    }

    fn json(&self) -> Value {
        let cpu = self.cpu_target();
        let peer = |(peer, figures): &(Peer, Figures)| (peer.name().to_owned(), self.peer_json(*peer, figures));
        json!({
            "load": title(self.case), "nodes": self.case.nodes, "clients": self.case.clients, "brink": self.brink.json(),
            "brink_paced": self.paced_json(Peer::Brink),
            "cpu_target_us": self.case.cpu_target_us(), "cpu_met": cpu.map(Target::is_met),
            "peers": self.peers.iter().map(peer).collect::<Map<_, _>>(),
        })
    }

    fn peer_json(&self, peer: Peer, figures: &Figures) -> Value {
        json!({
            "figures": figures.json(), "paced": self.paced_json(peer), "ratio": self.brink.rate_ratio(figures),
            "cpu_ratio": self.brink.cpu_ratio(figures), "target": self.case.rate_target(peer),
            "met": self.rate_target(peer, figures).map(Target::is_met),
            "p99_lower": self.brink.p99_ms < figures.p99_ms,
        })
    }

    fn paced_json(&self, peer: Peer) -> Option<Value> {
        let (_, figures) = self.paced.iter().find(|(paced, _)| *paced == peer)?;
        Some(json!({"figures": figures.json(), "p99_to_p50": figures.p99_ratio()}))
    }

    /// The lines of the table of paced loads.
    fn paced_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (peer, figures) in &self.paced {
            let (clients, name) = (self.case.clients, peer.name());
            let (Figures { rate, p50_ms, p99_ms, .. }, ratio) = (figures, figures.p99_ratio());
            let (server_us, loader_us) = (figures.server_us(), figures.loader_us());
            lines.push(format!(
                "{clients:>7} {name:<9} {rate:>9.0} {p50_ms:>8.2} {p99_ms:>8.2} {server_us:>9.1} {loader_us:>9.1} {ratio:>7.1}"
            ));
            add_warnings(&mut lines, *peer, figures);
        }
        lines
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
        let Figures { rate, p50_ms, p99_ms, .. } = figures;
        let (server_us, loader_us) = (figures.server_us(), figures.loader_us());
        let ratios = match peer {
            Peer::Brink => format!("{:>7} {:>7}", "", ""),
            _ => format!("{:>6.2}× {:>6.2}×", self.brink.rate_ratio(figures), self.brink.cpu_ratio(figures)),
        };
        let row = format!("{clients:>7} {name:<9} {rate:>9.0} {p50_ms:>8.2} {p99_ms:>8.2} {server_us:>9.1}");
        lines.push(format!("{row} {loader_us:>9.1} {ratios}  {verdict}").trim_end().to_owned());
        add_warnings(lines, peer, figures);
    }
}

/// What makes the figures of a line doubtful.
fn add_warnings(lines: &mut Vec<String>, peer: Peer, figures: &Figures) {
    let (name, Figures { errors, unsent, .. }) = (peer.name(), figures);
    if *errors > 0.0 {
        lines.push(format!("{:>7} {name} answered {errors} requests of a run with errors", ""));
    }
    if *unsent > 0.0 {
        lines.push(format!(
            "{:>7} {name} was too slow for its rate in a run: {unsent} requests were due but not sent",
            ""
        ));
    }
    if figures.is_loader_busy() {
        lines.push(format!("{:>7} the loader was the bottleneck; {name} may be faster", ""));
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

fn title(case: Case) -> &'static str {
    match (case.nodes, case.load) {
        (1, Load::Writes) => "Writes, a single node",
        (1, Load::StrongReads) => "Reads from a single node: linearizable ones of brink and etcd",
        (1, Load::LocalReads) => "Local reads from a single node",
        (_, Load::Writes) => "Writes, three nodes",
        (_, Load::StrongReads) => "Reads from the leader, three nodes: linearizable ones of brink and etcd",
        (_, Load::LocalReads) => "Local reads from a follower, three nodes",
    }
}

/// All cases as a JSON list.
pub(super) fn json(compared: &[Compared]) -> Value {
    compared.iter().map(Compared::json).collect()
}

/// Prints the tables of each kind of load, and a summary.
pub(super) fn print(compared: &[Compared]) {
    for cases in compared.chunk_by(|one, next| title(one.case) == title(next.case)) {
        let Some(first) = cases.first() else { continue };
        println!(
            "\n{}\n{}",
            title(first.case),
            table(&format!("{:>7} {:>7}  TARGET", "RATE", "CPU"), cases, Compared::lines)
        );
        if cases.iter().any(|compared| !compared.paced.is_empty()) {
            println!("\n{}, at 70 % of each server's own rate", title(first.case));
            println!("{}", table("P99/P50", cases, Compared::paced_lines));
        }
    }
    println!("\n{}", summary(compared));
}

/// A table whose last columns are `last`.
fn table(last: &str, cases: &[Compared], lines: fn(&Compared) -> Vec<String>) -> String {
    let head = format!(
        "{:>7} {:<9} {:>9} {:>8} {:>8} {:>9} {:>9} {last}",
        "CLIENTS", "SERVER", "PER SEC", "P50 MS", "P99 MS", "NODES µs", "LOADER µs"
    );
    std::iter::once(head).chain(cases.iter().flat_map(lines)).collect::<Vec<_>>().join("\n")
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
    use super::*;
    use crate::figures::tests::run;

    fn compared(clients: u32, peers: &[(Peer, Figures)]) -> Compared {
        let (case, paced) = (Case { nodes: 3, load: Load::Writes, clients }, vec![(Peer::Brink, run(8_400.0, 3.0))]);
        Compared { case, brink: run(12_000.0, 2.0), peers: peers.to_vec(), paced }
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
    fn a_paced_load_shows_how_far_p99_is_from_p50() {
        let mut compared = compared(16, &[]);
        assert!(compared.paced_lines()[0].ends_with("    3.0"), "{:?}", compared.paced_lines());
        assert_eq!(compared.json()["brink_paced"]["p99_to_p50"], json!(3.0));
        compared.paced[0].1.unsent = 7.0;
        assert!(
            compared.paced_lines()[1].ends_with("7 requests were due but not sent"),
            "{:?}",
            compared.paced_lines()
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
