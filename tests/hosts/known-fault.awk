# Reads what `run` printed. Names the runs that ended with the one fault that is known of QEMU's TCG (docs/hosts.md): vCPU 0 shut
# down, and with that reset, while it booted and had started nobody. Fails where there is none, where there are more than `most`,
# and where anything else went wrong: that is never repeated.

/ NOT AS EXPECTED$/ {
  inside = 1
  unexpected++
  name = previous
  sub(/ #[0-9]+$/, "", name)
  vcpus = $1 == "GUEST-FAULT" ? $2 : -1
  shutdown = booting = not_started = 0
}
inside && /^  vcpu0: triple fault, at 0xfff0( |$)/ { shutdown = 1 }
inside && /^  vcpu0 +booting: / { booting = 1 }
inside && /^  vcpu[0-9]+ +off: not started \(Uninitialized\)/ { not_started++ }
inside && /^$/ {
  inside = 0
  if (shutdown && booting && not_started == vcpus - 1) known[++count] = name
}
/^[0-9]+ runs?: .*; [0-9]+ not as expected \(/ {
  text = $0
  sub(/ not as expected .*/, "", text)
  sub(/.*; /, "", text)
  told += text
}
/^! exit code / && $4 != 100 { other = 1 }
/^! exit code 100$/ { failed++ }
/^[0-9]+ runs?: .*; [0-9]+ not as expected \(/ { failing++ }
{ previous = $0 }

END {
  if (other || count == 0 || count > most || count != unexpected || count != told || failed != failing) exit 1
  for (i = 1; i <= count; i++) print known[i]
}
