//! What a scenario makes happen in its runs: where vCPUs are held, and what goes wrong.
//!
//! ```text
//! holds  = ["VCPU at POINT[#N] until quiet"]                    the host lets it go once nothing else can move
//!          ["VCPU at POINT[#N] until VCPU at POINT[#N] or …"]   one of these arrivals lets it go
//!          ["VCPU at POINT[#N] until never"]
//! faults = ["drop ipi IPI [from VCPU] [to VCPU] [#N]"]          or duplicate; #* for each of them
//!          ["delay ipi IPI [from VCPU] [to VCPU] [#N] until VCPU at POINT[#N]"]
//!          ["no-start VCPU", "keep-out VCPU until quiet", "keep-out VCPU until never", "lose-init VCPU"]
//! ```
//!
//! VCPU is a number, `initiator`, `last` or `any`; who is held can also be `others`, each vCPU but the initiator, which makes a
//! hold for each. N is a number or a term as `vcpus-1`; IPI is `call`, `call-single`, `reschedule`, `nmi`, `init`, `sipi` or `any`.

use stallbench_abi::fault::{ANY_IPI, FAULTS, Fault, FaultKind};
use stallbench_abi::layout::vector;
use stallbench_abi::pause::{ANY_VCPU, Arrival, HOLDS, Hold, Release};
use stallbench_state::program::PointInfo;

use super::amount::{Amount, Size};
use super::error::Problem;
use crate::nearest::did_you_mean_or;
use crate::outcome::InjectedBy;

/// Delivery modes of the interrupt command register (SDM 3A 11.6.1) that carry no vector of their own.
const NMI: u32 = 0b100 << 8;
const INIT: u32 = 0b101 << 8;
/// With the vector of the trampoline, which is the only one that is sent.
const STARTUP: u32 = 0b110 << 8 | stallbench_abi::layout::SIPI_VECTOR as u32;

/// The interrupts that a fault can be about.
const IPIS: [(&str, u32); 7] = [
    ("call", vector::CALL_FUNCTION as u32),
    ("call-single", vector::CALL_FUNCTION_SINGLE as u32),
    ("reschedule", vector::RESCHEDULE as u32),
    ("nmi", NMI),
    ("init", INIT),
    ("sipi", STARTUP),
    ("any", ANY_IPI),
];

/// The holds and faults of a scenario, as declared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Injection {
    holds: Vec<HoldSpec>,
    faults: Vec<FaultSpec>,
}

/// The holds and faults of one run, as the boot block has them, each with the text that reports show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// Where vCPUs are held.
    pub holds: Vec<(String, Hold)>,
    /// What goes wrong.
    pub faults: Vec<(String, Fault)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct HoldSpec {
    text: String,
    at: ArrivalSpec,
    until: Until,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FaultSpec {
    text: String,
    kind: FaultKind,
    ipi: u32,
    from: Who,
    to: Who,
    /// `None`: each of them.
    nth: Option<Amount>,
    until: Until,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Until {
    Arrivals(Vec<ArrivalSpec>),
    Quiet,
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ArrivalSpec {
    who: Who,
    point: String,
    nth: Amount,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Any,
    Vcpu(usize),
    Initiator,
    Last,
    /// Each but the initiator, for itself: a hold for each.
    Others,
}

impl Injection {
    /// Reads the lists of a scenario.
    pub(super) fn parse(holds: &[&str], faults: &[&str]) -> Result<Self, Problem> {
        let too_many = |what, count: usize, most| Problem::TooManyInjections { what, count, most };
        if holds.len() > HOLDS {
            return Err(too_many("holds", holds.len(), HOLDS));
        }
        if faults.len() > FAULTS {
            return Err(too_many("faults", faults.len(), FAULTS));
        }
        Ok(Self {
            holds: holds.iter().map(|text| HoldSpec::parse(text)).collect::<Result<_, _>>()?,
            faults: faults.iter().map(|text| FaultSpec::parse(text)).collect::<Result<_, _>>()?,
        })
    }

    /// Whether nothing is held and nothing goes wrong.
    pub fn is_empty(&self) -> bool {
        self.holds.is_empty() && self.faults.is_empty()
    }

    /// The holds as declared, a text each.
    pub fn holds(&self) -> impl Iterator<Item = &str> {
        self.holds.iter().map(|hold| hold.text.as_str())
    }

    /// The faults as declared, a text each, and who injects it.
    pub fn faults(&self) -> impl Iterator<Item = (InjectedBy, &str)> {
        let by = |kind: FaultKind| if kind.is_of_host() { InjectedBy::Host } else { InjectedBy::Guest };
        self.faults.iter().map(move |fault| (by(fault.kind), fault.text.as_str()))
    }

    /// Holds and faults, as a list of what is injected says them: `hold`, `guest-injected` or `host-injected`, and the text.
    pub fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.holds().map(|hold| ("hold", hold)).chain(self.faults().map(|(by, fault)| (by.word(), fault)))
    }

    /// For a run of this size of an image with these points.
    ///
    /// # Errors
    ///
    /// The image has no such point, or the run no such vCPU.
    pub fn resolve(&self, size: Size, points: &[PointInfo]) -> Result<Injected, Problem> {
        let hold = |spec: &HoldSpec| -> Result<Vec<_>, Problem> {
            let (release, until) = spec.until.resolve(size, points)?;
            let at = spec.at.resolve_each(size, points)?;
            let hold = |at| (spec.text.clone(), Hold { at, until, release, reserved: [0; 3] });
            Ok(at.into_iter().map(hold).collect())
        };
        let fault = |spec: &FaultSpec| {
            let (release, [until, _]) = spec.until.resolve(size, points)?;
            let nth = spec.nth.map_or(Ok(0), |nth| number(&nth, size))?;
            let fault = Fault {
                kind: spec.kind,
                ipi: spec.ipi,
                from: spec.from.resolve(size)?,
                to: spec.to.resolve(size)?,
                nth,
                release,
                until,
                reserved: 0,
            };
            Ok((spec.text.clone(), fault))
        };
        let holds: Vec<_> = self.holds.iter().map(hold).collect::<Result<_, _>>()?;
        let holds = holds.concat();
        if holds.len() > HOLDS {
            return Err(Problem::TooManyInjections { what: "holds", count: holds.len(), most: HOLDS });
        }
        Ok(Injected { holds, faults: self.faults.iter().map(fault).collect::<Result<_, Problem>>()? })
    }

    /// Where nobody is held: what holds say is kept to be told, and may name vCPUs that there are not.
    ///
    /// # Errors
    ///
    /// Those of a fault in [`Self::resolve`].
    pub fn left_out(&self, size: Size, points: &[PointInfo]) -> Result<Injected, Problem> {
        let holds = self.holds.iter().map(|spec| (spec.text.clone(), Hold::default())).collect();
        let faults = Self { holds: Vec::new(), ..self.clone() }.resolve(size, points)?.faults;
        Ok(Injected { holds, faults })
    }
}

impl Injected {
    /// The first fault that is not over when all vCPUs are up, or is no matter of the guest alone: its text, and why no search of schedules
    /// has it. Where vCPUs do something about one that seems to be over, the search sees that.
    pub fn unexplored(&self) -> Option<(&str, &'static str)> {
        let why = |fault: &Fault| match fault.kind {
            FaultKind::NO_START => None,
            FaultKind::DROP_IPI | FaultKind::DUPLICATE_IPI if matches!(fault.ipi, INIT | STARTUP) => None,
            kind if kind.is_of_host() => Some("is about a host that runs vCPUs as it likes, and no search has one"),
            _ => Some("counts what comes in memory that is part of no state"),
        };
        self.faults.iter().find_map(|(what, fault)| Some((what.as_str(), why(fault)?)))
    }
}

impl HoldSpec {
    fn parse(text: &str) -> Result<Self, Problem> {
        let parse = || {
            let (at, until) = text.split_once(" until ")?;
            Some(Self { text: text.to_owned(), at: ArrivalSpec::parse_held(at)?, until: Until::parse(until)? })
        };
        parse().ok_or_else(|| Problem::BadInjection {
            what: "hold",
            text: text.to_owned(),
            expected: "'VCPU at POINT until VCPU at POINT', '… until quiet' or '… until never'",
        })
    }
}

impl FaultSpec {
    fn parse(text: &str) -> Result<Self, Problem> {
        Self::parse_words(text).ok_or_else(|| Problem::BadInjection {
            what: "fault",
            text: text.to_owned(),
            expected: "'drop|duplicate|delay ipi IPI [from VCPU] [to VCPU] [#N]', 'no-start VCPU', \
                       'keep-out VCPU until quiet|never' or 'lose-init VCPU'",
        })
    }

    fn parse_words(text: &str) -> Option<Self> {
        let (what, until) = match text.split_once(" until ") {
            Some((what, until)) => (what, Some(Until::parse(until)?)),
            None => (text, None),
        };
        let mut words = what.split_whitespace();
        let kind = match words.next()? {
            "drop" => FaultKind::DROP_IPI,
            "duplicate" => FaultKind::DUPLICATE_IPI,
            "delay" => FaultKind::DELAY_IPI,
            "no-start" => FaultKind::NO_START,
            "keep-out" => FaultKind::KEEP_OUT,
            "lose-init" => FaultKind::LOSE_INIT,
            _ => return None,
        };
        let is_ipi = matches!(kind, FaultKind::DROP_IPI | FaultKind::DUPLICATE_IPI | FaultKind::DELAY_IPI);
        let until_fits = match (kind, &until) {
            (FaultKind::DELAY_IPI, Some(Until::Arrivals(list))) => list.len() == 1,
            (FaultKind::KEEP_OUT, Some(Until::Quiet | Until::Never)) => true,
            (FaultKind::DELAY_IPI | FaultKind::KEEP_OUT, _) => false,
            (_, until) => until.is_none(),
        };
        let mut spec = Self {
            text: text.to_owned(),
            kind,
            ipi: 0,
            from: Who::Any,
            to: Who::Any,
            nth: Some(Amount::number(1)),
            until: until.unwrap_or(Until::Quiet),
        };
        if is_ipi {
            spec.parse_ipi(words)?
        } else {
            spec.parse_vcpu(words)?
        }
        until_fits.then_some(spec)
    }

    fn parse_ipi<'a>(&mut self, mut words: impl Iterator<Item = &'a str>) -> Option<()> {
        (words.next()? == "ipi").then_some(())?;
        let name = words.next()?;
        self.ipi = IPIS.iter().find(|(ipi, _)| *ipi == name)?.1;
        while let Some(word) = words.next() {
            match word {
                "from" => self.from = Who::parse(words.next()?)?,
                "to" => self.to = Who::parse(words.next()?)?,
                "#*" => self.nth = None,
                _ => self.nth = Some(Amount::parse_term(word.strip_prefix('#')?)?),
            }
        }
        Some(())
    }

    fn parse_vcpu<'a>(&mut self, mut words: impl Iterator<Item = &'a str>) -> Option<()> {
        self.to = Who::parse(words.next()?).filter(|who| *who != Who::Any)?;
        words.next().is_none().then_some(())
    }
}

impl Until {
    fn parse(text: &str) -> Option<Self> {
        match text.trim() {
            "quiet" => Some(Self::Quiet),
            "never" => Some(Self::Never),
            arrivals => {
                let list: Vec<_> = arrivals.split(" or ").map(ArrivalSpec::parse).collect::<Option<_>>()?;
                (list.len() <= 2).then_some(Self::Arrivals(list))
            }
        }
    }

    fn resolve(&self, size: Size, points: &[PointInfo]) -> Result<(Release, [Arrival; 2]), Problem> {
        let mut until = [Arrival::default(); 2];
        let release = match self {
            Self::Quiet => Release::QUIET,
            Self::Never => Release::NEVER,
            Self::Arrivals(list) => {
                for (slot, arrival) in until.iter_mut().zip(list) {
                    *slot = arrival.resolve(size, points)?;
                }
                Release::ARRIVAL
            }
        };
        Ok((release, until))
    }
}

impl ArrivalSpec {
    /// `VCPU at POINT` or `VCPU at POINT#N`.
    fn parse(text: &str) -> Option<Self> {
        let (who, place) = text.split_once(" at ")?;
        Self::at(Who::parse(who.trim())?, place)
    }

    /// As that; of who is held, `others` stands for each but the initiator.
    fn parse_held(text: &str) -> Option<Self> {
        match text.trim_start().strip_prefix("others at ") {
            Some(place) => Self::at(Who::Others, place),
            None => Self::parse(text),
        }
    }

    fn at(who: Who, place: &str) -> Option<Self> {
        let (point, nth) = match place.trim().split_once('#') {
            Some((point, nth)) => (point, Amount::parse_term(nth)?),
            None => (place.trim(), Amount::number(1)),
        };
        let is_name = !point.is_empty() && !point.contains(char::is_whitespace);
        is_name.then_some(Self { who, point: point.to_owned(), nth })
    }

    /// The arrival, or one for each of the vCPUs that it stands for.
    fn resolve_each(&self, size: Size, points: &[PointInfo]) -> Result<Vec<Arrival>, Problem> {
        let whom = |who| Self { who, ..self.clone() }.resolve(size, points);
        match self.who {
            Who::Others => (0..size.vcpus)
                .filter(|vcpu| *vcpu != size.initiator as usize)
                .map(|vcpu| whom(Who::Vcpu(vcpu)))
                .collect(),
            who => Ok(vec![whom(who)?]),
        }
    }

    fn resolve(&self, size: Size, points: &[PointInfo]) -> Result<Arrival, Problem> {
        let known = || points.iter().map(|point| point.name.as_str());
        let point = points.iter().find(|point| point.name == self.point).ok_or_else(|| Problem::UnknownPoint {
            point: self.point.clone(),
            nearest: did_you_mean_or(&self.point, known(), || match points.len() {
                0 => "; the image has none".to_owned(),
                _ => format!("; it has {}", known().collect::<Vec<_>>().join(", ")),
            }),
        })?;
        Ok(Arrival { point: point.address, vcpu: self.who.resolve(size)?, nth: number(&self.nth, size)? })
    }
}

impl Who {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "any" => Some(Self::Any),
            "initiator" => Some(Self::Initiator),
            "last" => Some(Self::Last),
            number => number.parse().ok().map(Self::Vcpu),
        }
    }

    fn resolve(self, size: Size) -> Result<u32, Problem> {
        let vcpu = match self {
            Self::Any | Self::Others => return Ok(ANY_VCPU),
            Self::Initiator => size.initiator as usize,
            Self::Last => size.vcpus - 1,
            Self::Vcpu(vcpu) => vcpu,
        };
        // There are at most 255.
        if vcpu < size.vcpus { Ok(vcpu as u32) } else { Err(Problem::NoSuchVcpu { vcpu, vcpus: size.vcpus }) }
    }
}

/// An arrival's number, which is never 0.
fn number(amount: &Amount, size: Size) -> Result<u32, Problem> {
    let value = amount.value_in(size);
    u32::try_from(value).ok().filter(|number| *number > 0).ok_or(Problem::BadNumber { value })
}

#[cfg(test)]
mod test {
    use super::*;

    const FOUR: Size = Size { vcpus: 4, initiator: 2 };

    fn points() -> Vec<PointInfo> {
        ["call_many/queued", "lock/taken"]
            .iter()
            .zip([0x10_0000, 0x10_0030])
            .map(|(name, address)| PointInfo { address, name: (*name).to_owned() })
            .collect()
    }

    fn resolved(holds: &[&str], faults: &[&str]) -> Result<Injected, String> {
        let injection = Injection::parse(holds, faults).map_err(|problem| problem.to_string())?;
        injection.resolve(FOUR, &points()).map_err(|problem| problem.to_string())
    }

    #[test]
    fn hold_names_who_where_and_what_lets_it_go() {
        let injected =
            resolved(&["initiator at call_many/queued#2 until any at lock/taken#vcpus-1 or last at lock/taken"], &[]);
        let hold = injected.unwrap().holds[0].1;
        assert_eq!(hold.at, Arrival { point: 0x10_0000, vcpu: 2, nth: 2 });
        assert_eq!(hold.until[0], Arrival { point: 0x10_0030, vcpu: ANY_VCPU, nth: 3 });
        assert_eq!(hold.until[1], Arrival { point: 0x10_0030, vcpu: 3, nth: 1 });
        assert_eq!(hold.release, Release::ARRIVAL);
        assert_eq!(resolved(&["0 at lock/taken until quiet"], &[]).unwrap().holds[0].1.release, Release::QUIET);
    }

    #[test]
    fn others_are_held_each_for_itself() {
        let injected = resolved(&["others at lock/taken until initiator at lock/taken"], &[]).unwrap();
        let held: Vec<_> = injected.holds.iter().map(|(_, hold)| hold.at.vcpu).collect();
        assert_eq!(held, [0, 1, 3], "vCPU 2 is the initiator");
        assert!(resolved(&["0 at lock/taken until others at lock/taken"], &[]).unwrap_err().contains("is no hold"));
        let text = "others at lock/taken until quiet";
        assert!(resolved(&[text, text, text], &[]).unwrap_err().contains("9 holds"));
    }

    #[test]
    fn fault_names_the_interrupt_as_the_command_register_has_it() {
        let fault = |text: &str| resolved(&[], &[text]).unwrap().faults[0].1;
        let dropped = fault("drop ipi call-single from 0 to last #3");
        assert_eq!(
            (dropped.kind, dropped.ipi, dropped.from, dropped.to, dropped.nth),
            (FaultKind::DROP_IPI, 0xfb, 0, 3, 3)
        );
        assert_eq!((fault("drop ipi nmi #*").ipi, fault("drop ipi nmi #*").nth), (0x400, 0));
        assert_eq!(fault("delay ipi any until 1 at lock/taken").until.point, 0x10_0030);
        assert_eq!((fault("no-start last").kind, fault("no-start last").to), (FaultKind::NO_START, 3));
        assert_eq!(fault("keep-out 1 until never").release, Release::NEVER);
    }

    #[test]
    fn fault_that_is_over_when_all_are_up_can_be_explored() {
        let unexplored = |text: &str| resolved(&[], &[text]).unwrap().unexplored().is_some();
        for text in ["no-start last", "drop ipi sipi to last", "duplicate ipi init #*"] {
            assert!(!unexplored(text), "{text}");
        }
        for text in [
            "lose-init 1",
            "keep-out 1 until quiet",
            "drop ipi call",
            "drop ipi any",
            "delay ipi sipi until 1 at lock/taken",
        ] {
            assert!(unexplored(text), "{text}");
        }
    }

    #[test]
    fn unknown_point_names_the_nearest() {
        let message = resolved(&["0 at lock/take until quiet"], &[]).unwrap_err();
        assert_eq!(message, "the image has no pause point 'lock/take'; did you mean lock/taken?");
    }

    #[test]
    fn vcpu_that_the_run_has_not_is_refused() {
        let message = resolved(&["4 at lock/taken until quiet"], &[]).unwrap_err();
        assert_eq!(message, "there is no vCPU 4 in a run with 4");
    }

    #[test]
    fn nonsense_is_refused_and_says_what_was_expected() {
        for text in ["", "0 at lock/taken", "x at lock/taken until quiet", "0 at a until b", "0 at a b until quiet"] {
            assert!(resolved(&[text], &[]).unwrap_err().contains("expected 'VCPU at POINT until"), "{text}");
        }
        for text in [
            "drop",
            "drop ipi",
            "drop ipi what",
            "drop ipi call until quiet",
            "delay ipi call",
            "no-start",
            "no-start any",
            "keep-out 1",
            "lose-init 1 2",
            "no-start 1 until never",
        ] {
            assert!(resolved(&[], &[text]).unwrap_err().contains("is no fault"), "{text}");
        }
        assert!(resolved(&["0 at lock/taken#vcpus-4 until quiet"], &[]).unwrap_err().contains("0 is no number"));
        assert!(resolved(&["0 at lock/taken until quiet"; 9], &[]).unwrap_err().contains("9 holds"));
    }
}
