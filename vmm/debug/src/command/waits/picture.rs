//! The waits-for graph as a drawing: for graphviz, and as an SVG of its own.

use std::f64::consts::TAU;
use std::fmt::Write;

use stallbench_stall::Analysis;
use stallbench_stall::report::WaitReport;

/// What of a wait is written at its edge: its site.
fn label(wait: &WaitReport) -> String {
    if wait.step.is_empty() { wait.site.clone() } else { format!("{} {}", wait.site, wait.step) }
}

/// The graph for graphviz.
pub(super) fn dot(analysis: &Analysis<'_>, waits: &[WaitReport]) -> String {
    let mut text =
        String::from("digraph waits {\n  node [shape=box, fontname=monospace];\n  edge [fontname=monospace];\n");
    for vcpu in 0..analysis.vcpus.len() {
        let stuck = if analysis.closure.stuck.contains(vcpu) { ", color=red" } else { "" };
        let doing = quoted(&format!("vcpu{vcpu}\n{}", analysis.doing(vcpu)));
        let _ = writeln!(text, "  vcpu{vcpu} [label={doing}{stuck}];");
    }
    for wait in waits {
        let color = if wait.closed { ", color=red" } else { "" };
        for awaited in &wait.awaits {
            let _ = writeln!(text, "  vcpu{} -> vcpu{awaited} [label={}{color}];", wait.vcpu, quoted(&label(wait)));
        }
    }
    text + "}\n"
}

/// A string of the language of graphviz.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// Where the circle of vCPUs has its middle, and how wide it is.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 480.0;
const RADIUS: f64 = 170.0;
/// Radius of a vCPU.
const NODE: f64 = 26.0;

/// Where a vCPU is drawn: on a circle, vCPU 0 on top.
fn spot(vcpu: usize, vcpus: usize) -> (f64, f64) {
    let angle = TAU * vcpu as f64 / vcpus.max(1) as f64 - TAU / 4.0;
    (WIDTH / 2.0 + RADIUS * angle.cos(), HEIGHT / 2.0 + RADIUS * angle.sin())
}

/// The graph as a picture.
pub(super) fn svg(analysis: &Analysis<'_>, waits: &[WaitReport]) -> String {
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"monospace\" font-size=\"12\">\n\
         <defs><marker id=\"to\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" orient=\"auto\">\
         <path d=\"M0 0 8 4 0 8z\"/></marker></defs>\n"
    );
    let count = analysis.vcpus.len();
    for wait in waits {
        for awaited in wait.awaits.iter().filter(|awaited| **awaited != wait.vcpu) {
            edge(&mut text, wait, spot(wait.vcpu, count), spot(*awaited, count));
        }
    }
    for vcpu in 0..count {
        node(&mut text, vcpu, spot(vcpu, count), analysis);
    }
    text + "</svg>\n"
}

/// An edge bends to its left, so that two opposite ones do not meet.
fn edge(text: &mut String, wait: &WaitReport, (x, y): (f64, f64), (to_x, to_y): (f64, f64)) {
    let (dx, dy) = (to_x - x, to_y - y);
    let length = dx.hypot(dy).max(1.0);
    let (middle_x, middle_y) = (f64::midpoint(x, to_x) + dy * 0.15, f64::midpoint(y, to_y) - dx * 0.15);
    let (end_x, end_y) = (to_x - dx / length * NODE, to_y - dy / length * NODE);
    let colour = if wait.closed { "#c00" } else { "#666" };
    let _ = writeln!(
        text,
        "<path d=\"M{x:.0} {y:.0}Q{middle_x:.0} {middle_y:.0} {end_x:.0} {end_y:.0}\" fill=\"none\" stroke=\"{colour}\" \
         marker-end=\"url(#to)\"/>\n<text x=\"{middle_x:.0}\" y=\"{middle_y:.0}\" text-anchor=\"middle\">{}</text>",
        escaped(&label(wait))
    );
}

fn node(text: &mut String, vcpu: usize, (x, y): (f64, f64), analysis: &Analysis<'_>) {
    let colour = if analysis.closure.stuck.contains(vcpu) { "#c00" } else { "#333" };
    let doing = escaped(&analysis.doing(vcpu));
    let _ = writeln!(
        text,
        "<g><title>vcpu{vcpu} {doing}</title><circle cx=\"{x:.0}\" cy=\"{y:.0}\" r=\"{NODE}\" fill=\"#fff\" stroke=\"{colour}\" \
         stroke-width=\"2\"/><text x=\"{x:.0}\" y=\"{:.0}\" text-anchor=\"middle\">vcpu{vcpu}</text></g>",
        y + 4.0
    );
}

/// Text of an XML element.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_a_guest_wrote_cannot_end_a_string_of_the_drawing() {
        assert_eq!(quoted("a\"b\\\n"), r#""a\"b\\\n""#);
        assert_eq!(escaped("<T as U>&"), "&lt;T as U&gt;&amp;");
    }
}
