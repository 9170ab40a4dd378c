package conform

import (
	"fmt"

	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/lab"
)

// Proof is whether COLO works on this host with one QEMU, and what it costs here.
type Proof struct {
	Program string       `json:"program"` // the QEMU that was tried
	QEMU    string       `json:"qemu"`    // its version
	Accel   string       `json:"accel"`   // kvm only if a guest became ready with it
	OK      bool         `json:"ok"`
	Checks  []Check      `json:"checks"`
	Runs    []lab.Result `json:"runs"` // scenarios with a guest, each with its figures
}

// A Check is one thing that was to be found out. OK is false too for what was not tried.
type Check struct {
	config.Finding
	NotTried bool `json:"not_tried,omitempty"`
}

// Add notes a check and says whether it was good.
func (p *Proof) Add(rule string, err error, good, remedy string) bool {
	f := config.Finding{Rule: rule, OK: err == nil, Text: good}
	if err != nil {
		f.Text, f.Remedy, p.OK = err.Error(), remedy, false
	}
	p.Checks = append(p.Checks, Check{Finding: f})
	return f.OK
}

// Skip notes what can't be tried here, which is no fault of QEMU's.
func (p *Proof) Skip(rule, why string) {
	p.Checks = append(p.Checks, Check{config.Finding{Rule: rule, Text: "not tried: " + why}, true})
}

// Scenarios are those of the lab that complete a proof with a guest, and what each shows besides a protection and its checkpoints.
var Scenarios = []struct{ Name, Shows string }{
	{"kill-secondary-qemu", "failover of the primary, and a resync by bitmap"},
	{"freeze-primary", "failover of the secondary from a copy that hangs: yank, fencing, and a resync by checksum"},
}

// Whole is the rule of a scenario's run as such, after its name and a colon.
const Whole = "as a whole"

// Judge adds the result of a scenario.
func (p *Proof) Judge(r *lab.Result) {
	p.Runs = append(p.Runs, *r)
	add := func(rule string, ok bool, format string, args ...any) {
		text, rule := fmt.Sprintf(format, args...), r.Scenario+": "+rule
		if ok {
			p.Add(rule, nil, text, "")
			return
		}
		p.Add(rule, fmt.Errorf("%s", text), "", "run it again with its logs kept: coloctl lab run "+r.Scenario+" --keep")
	}
	text := "ok"
	if r.Error != nil {
		text = *r.Error
	}
	add(Whole, r.OK, "%s", text)
	span := func(rule string, ms *float64) {
		if ms == nil {
			add(rule, false, "not reached")
			return
		}
		add(rule, true, "%.0f ms", *ms)
	}
	span("protected after", r.ProtectMS)
	span("checkpoint pause, median", r.CheckpointPauseP50MS)
	span("checkpoint pause, p99", r.CheckpointPauseP99MS)
	span("failover", r.FailoverMS)
	span("clients waited, HTTP", r.BlackoutHTTPMS)
	span("protected again after", r.ReprotectMS)
	if r.ResyncBytes != nil && r.DiskBytes != nil {
		add("resync", *r.ResyncBytes < *r.DiskBytes, "%.1f MB sent of %.1f MB", float64(*r.ResyncBytes)/1e6, float64(*r.DiskBytes)/1e6)
	}
	if r.WritesAcked != nil && r.WritesLost != nil {
		add("writes", *r.WritesLost == 0, "%d acknowledged, %d lost", *r.WritesAcked, *r.WritesLost)
	}
	if r.TCPTotal != nil && r.TCPSurvived != nil {
		add("connections", *r.TCPTotal == *r.TCPSurvived, "%d of %d survived", *r.TCPSurvived, *r.TCPTotal)
	}
}
