package colo

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/coloctl/coloctl/qmp"
)

// hardware is what a node's QEMU can build. It is asked once, of the QEMU that is started to find out what else it can do.
type hardware struct {
	program, version string
	machines         map[string]int // most virtual CPUs of each; 0 when QEMU doesn't say
	aliases          []string       // such as pc: what people write
	cpus             map[string]bool
}

func probeHardware(ctx context.Context, c *qmp.Client, program, version string) (*hardware, error) {
	machines, err := c.QueryMachines(ctx)
	if err != nil {
		return nil, err
	}
	cpus, err := c.QueryCPUModels(ctx)
	if err != nil {
		return nil, err
	}
	h := &hardware{program: program, version: version, machines: map[string]int{}, cpus: map[string]bool{}}
	for _, m := range machines {
		if m.Name == "none" { // no guest runs in it
			continue
		}
		h.machines[m.Name] = m.CPUMax
		if m.Alias != "" {
			h.machines[m.Alias] = m.CPUMax
			h.aliases = append(h.aliases, m.Alias)
		}
	}
	slices.Sort(h.aliases)
	for _, m := range cpus {
		h.cpus[m.Name] = true
	}
	return h, nil
}

// check reports what a spec wants that this QEMU doesn't know; each error is an [*InvalidSpecError]. Options behind a comma are QEMU's to judge.
func (h *hardware) check(s *Spec) []error {
	if h == nil {
		return nil
	}
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &InvalidSpecError{Field: "$." + field, Msg: fmt.Sprintf(format, args...)})
	}
	machine, _, _ := strings.Cut(s.Machine, ",")
	for o := range strings.SplitSeq(s.Machine, ",") {
		if t, ok := strings.CutPrefix(o, "type="); ok {
			machine = t
		}
	}
	switch most, known := h.machines[machine]; {
	case !known:
		bad("machine", "%q is no machine of QEMU %s: expected %s, or one of those that %s -M help lists", machine, h.version, strings.Join(h.aliases, ", "), h.program)
	case most > 0 && s.VCPUs > most:
		bad("vcpus", "%d: expected at most %d, which is what a machine %s of QEMU %s takes", s.VCPUs, most, machine, h.version)
	}
	if cpu, _, _ := strings.Cut(s.CPU, ","); cpu != "" && !h.cpus[cpu] {
		bad("cpu", "%q is no CPU model of QEMU %s: expected for example qemu64 or host, or one of those that %s -cpu help lists", cpu, h.version, h.program)
	}
	return errs
}
