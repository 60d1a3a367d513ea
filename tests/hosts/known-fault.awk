# Reads what `run` and suites of tests printed. Names the runs and the tests that ended with the one fault that is known of the emulator
# (docs/hosts.md). Fails where there is none, where there are more than `most`, and where anything else went wrong: that is never repeated.
#
# vendor=amd, QEMU's TCG: a vCPU was shut down, and with that reset, in a scenario that has no triple fault; or it was about to take
# exception 13 or 14 until the budget was used up, which no handler of the payload lets happen twice.
# vendor=intel, Bochs: a vCPU was about to take an NMI until the budget was used up.

suite == "" && / NOT AS EXPECTED$/ {
  inside = 1
  unexpected++
  name = previous
  sub(/ #[0-9]+$/, "", name)
  verdict = $1
  shutdown = nmi = astray = 0
}
inside && /^  vcpu[0-9]+: triple fault, at 0xfff0( |$)/ { shutdown = 1 }
inside && /^  (vcpu[0-9]+ [^;:]*; )*vcpu[0-9]+ is about to take an NMI;/ { nmi = 1 }
inside && /^  .*is about to take exception 1[34][ ;,]/ { astray = 1 }
inside && /^$/ {
  inside = 0
  lost = (verdict == "GUEST-FAULT" && shutdown) || (verdict == "BUDGET" && astray)
  stuck = verdict == "BUDGET" && nmi
  if (vendor == "amd" ? lost : stuck) known[++count] = name
}
suite == "" && /^[0-9]+ runs?: .*; [0-9]+ not as expected \(/ {
  text = $0
  sub(/ not as expected .*/, "", text)
  sub(/.*; /, "", text)
  told += text
}
/^\+ / {
  suite = $2 == "truth" || $2 == "with_gdb" || $2 == "core" || $2 == "model" || $2 == "reality" ? $2 : ""
  section = ""
  tests = lost_here = 0
}
suite != "" && /^---- .* stdout ----$/ {
  section = $2
  tests++
}
suite != "" && /^failures:$/ { section = "" }
# A test shows the report of its run, or the event.
section != "" && vendor == "amd" && (/^  vcpu[0-9]+: triple fault, at 0xfff0( |$)/ || /fault: Shutdown/) {
  lost_tests[++lost_test] = suite " --test-threads 1 --exact " section
  section = ""
  tests--
  lost_here++
}
/^! exit code / && $4 != 100 && !(suite != "" && $4 == 101 && lost_here > 0 && tests == 0) { other = 1 }
/^! exit code 100$/ { failed++ }
suite == "" && /^[0-9]+ runs?: .*; [0-9]+ not as expected \(/ { failing++ }
{ previous = $0 }

END {
  if (other || count + lost_test == 0 || count + lost_test > most || count != unexpected || count != told || failed != failing) exit 1
  for (i = 1; i <= count; i++) print known[i]
  for (i = 1; i <= lost_test; i++) print lost_tests[i]
}
