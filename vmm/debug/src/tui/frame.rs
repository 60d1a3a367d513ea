//! One frame: what the command `view` says (docs/debugger.md), as texts for the screen. Whatever is missing is left empty.

use serde_json::Value;

use crate::style::printable;

/// A frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Frame {
    /// The name of the run.
    pub(super) run: String,
    /// Whether the machine runs, in a word.
    pub(super) state: String,
    /// Why it does not.
    pub(super) why: Option<String>,
    /// What the run came to.
    pub(super) verdict: Option<String>,
    /// Why there are no counters of the kernel.
    pub(super) no_statistics: Option<String>,
    pub(super) vcpus: Vec<Vcpu>,
}

/// A vCPU of a frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Vcpu {
    /// Its cells, in the order of [`HEADINGS`].
    pub(super) cells: [String; HEADINGS.len()],
    /// It waits for what nobody will do.
    pub(super) is_stuck: bool,
    /// What it waits for, whole.
    pub(super) wait: Option<String>,
    /// Counters of the kernel that are not zero: name, value, and a second.
    pub(super) statistics: Vec<(String, String, String)>,
}

/// What the columns are called.
pub(super) const HEADINGS: [&str; 10] =
    ["vcpu", "state", "IF", "progress", "a s", "irqs/s", "IPIs/s", "exits/s", "CPU", "does"];

impl Frame {
    /// The frame that `view` says.
    pub(super) fn of(view: &Value) -> Self {
        let stuck: Vec<u64> = list(&view["stuck"]).iter().filter_map(Value::as_u64).collect();
        Self {
            run: text(&view["run"]).unwrap_or_default(),
            state: text(&view["state"]).unwrap_or_default(),
            why: text(&view["why"]),
            verdict: verdict(&view["result"]),
            no_statistics: text(&view["no_statistics"]),
            vcpus: list(&view["vcpus"]).iter().map(|vcpu| Vcpu::of(vcpu, &stuck)).collect(),
        }
    }

    /// Whether the machine goes on by itself.
    pub(super) fn is_running(&self) -> bool {
        self.state == "running"
    }
}

impl Vcpu {
    fn of(vcpu: &Value, stuck: &[u64]) -> Self {
        let rate = |key: &str| vcpu["rates"][key].as_f64().map_or_else(nothing, |rate| format!("{rate:.0}"));
        let cpu = vcpu["rates"]["cpu"].as_f64().map_or_else(nothing, |share| format!("{:.0}%", share * 100.0));
        let enabled = vcpu["interrupts_enabled"].as_bool().map_or_else(nothing, |is| u8::from(is).to_string());
        let cells = [
            number(&vcpu["vcpu"]),
            text(&vcpu["state"]).unwrap_or_default(),
            enabled,
            number(&vcpu["progress"]),
            rate("progress"),
            rate("interrupts"),
            rate("ipis"),
            rate("exits"),
            cpu,
            text(&vcpu["doing"]).unwrap_or_default(),
        ];
        let is_stuck = vcpu["vcpu"].as_u64().is_some_and(|vcpu| stuck.contains(&vcpu));
        Self { cells, is_stuck, wait: wait(vcpu), statistics: statistics(vcpu) }
    }
}

/// Where it is, and what it waits for.
fn wait(vcpu: &Value) -> Option<String> {
    let symbol = text(&vcpu["symbol"]).or_else(|| text(&vcpu["rip"]))?;
    Some(format!("at {symbol}{}", awaited(&vcpu["wait"]).unwrap_or_default()))
}

/// What a wait is for, and whom.
fn awaited(wait: &Value) -> Option<String> {
    let [word, address, until] = ["word", "address", "until"].map(|key| text(&wait[key]));
    let whom: Vec<_> = list(&wait["awaits"]).iter().map(|vcpu| format!("vcpu{}", number(vcpu))).collect();
    let whom = if whom.is_empty() { String::new() } else { format!(", from {}", whom.join(", ")) };
    let doing = text(&wait["awaited_do"]).map(|doing| format!(" ({doing})")).unwrap_or_default();
    Some(format!(": for {} at {} {}{whom}{doing}", word?, address?, until?))
}

/// The counters of the kernel that have counted something.
fn statistics(vcpu: &Value) -> Vec<(String, String, String)> {
    let rates = &vcpu["statistic_rates"];
    let rate = |name: &str| rates[name].as_f64().map_or_else(nothing, |rate| format!("{rate:.0}"));
    let of = |(name, value): (&String, &Value)| (printable(name), number(value), rate(name));
    let counted = |(_, value): &(&String, &Value)| value.as_u64() != Some(0);
    vcpu["statistics"].as_object().map(|all| all.iter().filter(counted).map(of).collect()).unwrap_or_default()
}

/// The verdict of a result, with its kind and whether it is the expected one.
fn verdict(result: &Value) -> Option<String> {
    let mut words = text(&result["verdict"])?;
    words.extend(text(&result["kind"]).map(|kind| format!(" {kind}")));
    words.extend(result["as_expected"].as_bool().map(|is| if is { ", as expected" } else { ", not as expected" }));
    Some(words)
}

fn nothing() -> String {
    "-".into()
}

fn number(value: &Value) -> String {
    value.as_u64().map_or_else(nothing, |number| number.to_string())
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(printable)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod test {
    use serde_json::json;

    use super::*;

    #[test]
    fn whatever_is_missing_or_of_another_kind_is_left_empty() {
        assert_eq!(Frame::of(&Value::Null), Frame::default());
        assert_eq!(Frame::of(&json!([1])), Frame::default());
        let odd = json!({"run": 7, "vcpus": [7, null, {"vcpu": "x", "rates": []}], "stuck": {}, "result": []});
        let frame = Frame::of(&odd);
        assert_eq!((frame.vcpus.len(), frame.verdict), (3, None));
        assert_eq!(frame.vcpus[2].cells[0], "-");
    }

    #[test]
    fn cells_say_what_the_view_says() {
        let view = json!({"run": "a/b", "state": "running", "stuck": [1], "vcpus": [{
            "vcpu": 1, "state": "runnable", "interrupts_enabled": false, "progress": 12, "doing": "waits\u{1b}[2J",
            "rip": "0x10", "symbol": null, "wait": {"word": "gate", "address": "0x20", "until": "to become 1",
            "awaits": [0], "awaited_do": "running its callback"}, "statistics": {"exits": 70, "hypercalls": 0}, "statistic_rates": {"exits": 3.4},
            "rates": {"progress": 5.0, "interrupts": 1.2, "ipis": 0.4, "exits": 3.4, "cpu": 0.5},
        }], "result": {"verdict": "stall", "kind": "deadlock"}});
        let frame = Frame::of(&view);
        assert!(frame.is_running() && frame.verdict.as_deref() == Some("stall deadlock"));
        let vcpu = &frame.vcpus[0];
        let cells = ["1", "runnable", "0", "12", "5", "1", "0", "3", "50%", "waits?[2J"];
        assert_eq!((vcpu.cells.each_ref().map(String::as_str), vcpu.is_stuck), (cells, true));
        assert_eq!(
            vcpu.wait.as_deref(),
            Some("at 0x10: for gate at 0x20 to become 1, from vcpu0 (running its callback)")
        );
        assert_eq!(vcpu.statistics, [("exits".into(), "70".into(), "3".into())]);
    }
}
