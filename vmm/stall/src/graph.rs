//! Who can still act: the fixpoint under every verdict of a stall. Pure logic over sets; it knows no guest and no machine.
//!
//! A vCPU *acts* when it may still change something that others look at. The acting vCPUs are the least set that is closed
//! under three rules:
//!
//! 1. who moves by itself acts (it runs, or an interrupt is about to be taken);
//! 2. who waits acts when enough of those that it awaits act: its wait may end;
//! 3. who can be interrupted acts when anybody else acts, since that one may send it an interrupt, and its handler may
//!    do what others wait for.
//!
//! Its complement is a greatest fixpoint: none of its members can act unless another of them does. A wait of which not
//! enough awaited vCPUs act can never end. Rule 3 errs on the side of life: it can hide a stall, it cannot make one.

use crate::set::VcpuSet;

/// What one vCPU can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// It moves by itself.
    pub moves: bool,
    /// An interrupt of any kind would be taken.
    pub interruptible: bool,
    /// What must happen before its wait can end.
    pub wait: Option<Need>,
}

/// What must happen before a wait can end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// The vCPUs of whom some must act.
    pub awaits: VcpuSet,
    /// How many of them.
    pub enough: usize,
}

/// The fixpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closure {
    /// The vCPUs that may still act.
    pub acting: VcpuSet,
    /// The vCPUs whose wait can never end.
    pub stuck: VcpuSet,
}

impl Closure {
    /// Computes the fixpoint.
    pub fn of(nodes: &[Node]) -> Self {
        let mut acting = VcpuSet::EMPTY;
        loop {
            let next: VcpuSet = (0..nodes.len()).filter(|&vcpu| acts(vcpu, &nodes[vcpu], acting)).collect();
            if next == acting {
                return Self { acting, stuck: stuck(nodes, acting) };
            }
            acting = next;
        }
    }
}

/// Whether a vCPU acts, given those that are known to act. Monotone in `acting`, so that the iteration ends.
fn acts(vcpu: usize, node: &Node, acting: VcpuSet) -> bool {
    let others = acting.without(vcpu);
    node.moves || node.wait.is_some_and(|need| can_end(need, acting)) || (node.interruptible && !others.is_empty())
}

fn can_end(need: Need, acting: VcpuSet) -> bool {
    need.awaits.and(acting).len() >= need.enough
}

fn stuck(nodes: &[Node], acting: VcpuSet) -> VcpuSet {
    let waits = nodes.iter().enumerate().filter_map(|(vcpu, node)| Some((vcpu, node.wait?)));
    // A vCPU that moves is about to leave its spin, if only for a handler.
    waits.filter(|&(vcpu, need)| !nodes[vcpu].moves && !can_end(need, acting)).map(|(vcpu, _)| vcpu).collect()
}

/// For each vCPU, those that it reaches by one or more edges.
pub fn reachable(edges: &[VcpuSet]) -> Vec<VcpuSet> {
    let mut reach = edges.to_vec();
    for via in 0..edges.len() {
        let through = reach[via];
        for from in &mut reach {
            if from.contains(via) {
                *from = from.or(through);
            }
        }
    }
    reach
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn set(vcpus: &[usize]) -> VcpuSet {
        vcpus.iter().copied().collect()
    }

    fn waits(awaits: &[usize], enough: usize) -> Node {
        Node { wait: Some(Need { awaits: set(awaits), enough }), ..Node::default() }
    }

    const MOVES: Node = Node { moves: true, interruptible: false, wait: None };
    const IDLE: Node = Node { moves: false, interruptible: true, wait: None };

    #[test]
    fn cycle_without_outside_is_stuck() {
        let closure = Closure::of(&[waits(&[1], 1), waits(&[0], 1)]);
        assert_eq!((closure.stuck, closure.acting), (set(&[0, 1]), set(&[])));
    }

    #[test]
    fn chain_that_ends_at_a_mover_is_alive() {
        let closure = Closure::of(&[waits(&[1], 1), waits(&[2], 1), MOVES]);
        assert_eq!((closure.stuck, closure.acting), (set(&[]), set(&[0, 1, 2])));
    }

    #[test]
    fn wait_for_all_is_stuck_by_one_that_never_acts() {
        let nodes = |enough| [waits(&[1, 2], enough), MOVES, Node::default()];
        assert_eq!(Closure::of(&nodes(2)).stuck, set(&[0]));
        assert_eq!(Closure::of(&nodes(1)).stuck, set(&[]));
    }

    #[test]
    fn idle_member_supplies_nothing_unless_somebody_can_interrupt_it() {
        assert_eq!(Closure::of(&[waits(&[1], 1), IDLE]).stuck, set(&[0]));
        assert_eq!(Closure::of(&[waits(&[1], 1), IDLE, MOVES]).stuck, set(&[]));
    }

    #[test]
    fn member_that_nothing_interrupts_stays_stuck_beside_a_mover() {
        assert_eq!(Closure::of(&[waits(&[1], 1), waits(&[0], 1), MOVES]).stuck, set(&[0, 1]));
    }

    #[test]
    fn waiter_about_to_take_an_interrupt_is_not_stuck() {
        let interrupting = Node { moves: true, ..waits(&[1], 1) };
        assert_eq!(Closure::of(&[interrupting, waits(&[0], 1)]).stuck, set(&[]));
    }

    #[test]
    fn reachable_follows_more_than_one_edge() {
        let reach = reachable(&[set(&[1]), set(&[2]), set(&[1])]);
        assert_eq!(reach, [set(&[1, 2]), set(&[1, 2]), set(&[1, 2])]);
    }

    fn arbitrary_nodes() -> impl Strategy<Value = Vec<Node>> {
        let node = |n: usize| {
            (0u8..4, any::<bool>(), any::<Option<u8>>(), 0usize..4).prop_map(
                move |(moves, interruptible, awaits, enough)| {
                    let awaited = |bits: u8| (0..n).filter(|vcpu| bits & 1 << vcpu != 0).collect();
                    let wait = awaits.map(|bits| Need { awaits: awaited(bits), enough });
                    Node { moves: moves == 0, interruptible, wait }
                },
            )
        };
        (1usize..=6).prop_flat_map(move |n| prop::collection::vec(node(n), n))
    }

    /// The rules as they are written, over plain booleans: no iteration, no sets.
    fn is_closed_under_the_rules(nodes: &[Node], acts: u32) -> bool {
        let is_acting = |vcpu: usize| acts & 1 << vcpu != 0;
        nodes.iter().enumerate().all(|(vcpu, node)| {
            let awaited = |need: Need| (0..nodes.len()).filter(|&u| need.awaits.contains(u) && is_acting(u)).count();
            let ends = node.wait.is_some_and(|need| awaited(need) >= need.enough);
            let woken = node.interruptible && (0..nodes.len()).any(|u| u != vcpu && is_acting(u));
            is_acting(vcpu) || !(node.moves || ends || woken)
        })
    }

    proptest! {
        #[test]
        fn acting_is_the_least_set_closed_under_the_rules(nodes in arbitrary_nodes()) {
            let sets = (0u32..1 << nodes.len()).filter(|&acts| is_closed_under_the_rules(&nodes, acts));
            let least = sets.fold(u32::MAX, |all, acts| all & acts);
            let expected: VcpuSet = (0..nodes.len()).filter(|vcpu| least & 1 << vcpu != 0).collect();
            prop_assert_eq!(Closure::of(&nodes).acting, expected);
        }

        #[test]
        fn one_more_mover_never_makes_a_stall(nodes in arbitrary_nodes(), at in any::<prop::sample::Index>()) {
            let before = Closure::of(&nodes);
            let mut nodes = nodes;
            let at = at.index(nodes.len());
            nodes[at].moves = true;
            let after = Closure::of(&nodes);
            prop_assert!(after.stuck.minus(before.stuck).is_empty());
            prop_assert!(before.acting.minus(after.acting).is_empty());
        }

        #[test]
        fn stuck_waits_hang_on_members_that_do_not_act(nodes in arbitrary_nodes()) {
            let closure = Closure::of(&nodes);
            for vcpu in closure.stuck.iter() {
                let need = nodes[vcpu].wait.expect("only waits are stuck");
                prop_assert!(need.awaits.and(closure.acting).len() < need.enough);
            }
        }
    }
}
