package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/provision"
	"github.com/coloctl/coloctl/qmp"
)

// proof is what doctor --prove found: whether COLO works on this host with its own QEMU, and what it costs here.
type proof struct {
	Program string       `json:"program"` // the QEMU that was tried
	QEMU    string       `json:"qemu"`    // its version
	Accel   string       `json:"accel"`   // kvm only if a guest became ready with it
	OK      bool         `json:"ok"`
	Checks  findings     `json:"checks"`
	Runs    []lab.Result `json:"runs"` // each with its figures
}

// proofRuns are the scenarios of a proof: what each shows besides a protection and its checkpoints.
var proofRuns = []struct{ scenario, shows string }{
	{"kill-secondary-qemu", "failover of the primary, and a resync by bitmap"},
	{"freeze-primary", "failover of the secondary from a copy that hangs: yank, fencing, and a resync by checksum"},
}

// prove runs COLO on this host, in a lab of its own: nodes, VMs and disks of this host are not touched.
func prove(cc *cli.Context) error {
	p, err := newProof(cc)
	if err == nil && p.OK {
		err = p.run(cc)
	}
	if err != nil {
		return attempt(err, "prove", "", nil)
	}
	if f := format(cc); f != lab.FormatTable {
		err = lab.Encode(cc.App.Writer, f, p)
	} else {
		err = p.print(cc)
	}
	if err == nil && !p.OK {
		return &taskError{"doctor", fmt.Errorf("%w: COLO does not work here as it should", errUnwell), "what is said above"}
	}
	return err
}

// newProof looks at what would be run. A QEMU that can't do it is not tried.
func newProof(cc *cli.Context) (*proof, error) {
	p := &proof{}
	argv, img := []string{"qemu-system-x86_64"}, []string{"qemu-img"}
	if c, err := config.Load(cc.String("config")); err == nil {
		argv, img = c.QEMU.Command, c.QEMU.Img
	} else if cc.IsSet("config") || !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if q, i := os.Getenv(provision.QEMUVariable), os.Getenv(provision.QEMUImgVariable); q != "" && i != "" && !cc.IsSet("config") {
		argv, img = []string{q}, []string{i}
	}
	if len(argv) != 1 || len(img) != 1 {
		return nil, fmt.Errorf("qemu.command %q has arguments: the proof takes a program only", argv)
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		p.Checks.add("qemu", err, "", "install QEMU 11 or newer (Debian: qemu-system-x86, qemu-utils), or name it in "+provision.QEMUVariable+" and "+provision.QEMUImgVariable)
		return p, nil
	}
	image, err := exec.LookPath(img[0])
	if err != nil {
		p.Checks.add("qemu-img", err, "", "install it (Debian: qemu-utils)")
		return p, nil
	}
	p.Program = path
	features, err := askQEMU(cc.Context, []string{path})
	if err != nil {
		p.Checks.add("qemu starts", err, "", "start it by hand and see what it says")
		return p, nil
	}
	v := features.Version.QEMU
	p.QEMU = fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	p.Checks.add("qemu starts", nil, p.QEMU, "")
	lacks := features.Require(qmp.ColoFeatures()...)
	p.Checks.add("qemu features", lacks, "all that COLO needs", "install a QEMU built with replication and COLO, such as Debian's")
	_ = os.Setenv(provision.QEMUVariable, path)
	_ = os.Setenv(provision.QEMUImgVariable, image)
	tools, err := provision.Ensure(cc.Context, provision.Options{Out: cc.App.ErrWriter})
	if err != nil {
		return nil, err
	}
	p.Accel = tools.Accel
	said := "tcg: no guest became ready with KVM on this host"
	if p.Accel == "kvm" {
		said = "kvm: a guest became ready with it"
	}
	p.Checks.add("accelerator", nil, said, "")
	var old error
	if p.Accel == "tcg" && v.Major < leastTCG {
		old = fmt.Errorf("QEMU %s can't protect under TCG: the primary deadlocks at one of COLO's first checkpoints", p.QEMU)
	}
	p.Checks.add("checkpoints are possible", old, "yes, as far as is known", fmt.Sprintf("use KVM, or QEMU %d or newer", leastTCG))
	p.OK = lacks == nil && old == nil
	return p, nil
}

// run runs the scenarios, each in a lab of its own.
func (p *proof) run(cc *cli.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, r := range proofRuns {
		fmt.Fprintf(cc.App.ErrWriter, "%s: %s\n", r.scenario, r.shows)
		result, err := p.one(cc.Context, self, r.scenario, cc.App.ErrWriter)
		if err != nil {
			return err
		}
		p.Runs = append(p.Runs, *result)
		p.judge(result)
	}
	return nil
}

func (p *proof) one(ctx context.Context, self, scenario string, errOut io.Writer) (*lab.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "lab", "run", scenario, "-o", "json")
	cmd.Args[0] = filepath.Base(self)
	cmd.Env = append(os.Environ(), provision.AccelVariable+"="+p.Accel)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, io.MultiWriter(&said, errOut)
	failed := cmd.Run()
	var r lab.Result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil { // it came to no result
		return nil, fmt.Errorf("lab run %s: %w: %s", scenario, errors.Join(failed, ctx.Err()), strings.TrimSpace(said.String()))
	}
	return &r, nil
}

// judge turns a run's result into rules.
func (p *proof) judge(r *lab.Result) {
	add := func(rule string, ok bool, text string) {
		f := config.Finding{Rule: r.Scenario + ": " + rule, OK: ok, Text: text}
		if !ok {
			f.Remedy, p.OK = "run it again with its logs kept: coloctl lab run "+r.Scenario+" --keep", false
		}
		p.Checks = append(p.Checks, f)
	}
	text := "ok"
	if r.Error != nil {
		text = *r.Error
	}
	add("as a whole", r.OK, text)
	span := func(rule string, ms *float64) {
		if ms == nil {
			add(rule, false, "not reached")
			return
		}
		add(rule, true, fmt.Sprintf("%.0f ms", *ms))
	}
	span("protected after", r.ProtectMS)
	span("checkpoint pause, median", r.CheckpointPauseP50MS)
	span("checkpoint pause, p99", r.CheckpointPauseP99MS)
	span("failover", r.FailoverMS)
	span("clients waited, HTTP", r.BlackoutHTTPMS)
	span("protected again after", r.ReprotectMS)
	if r.ResyncBytes != nil && r.DiskBytes != nil {
		add("resync", *r.ResyncBytes < *r.DiskBytes, fmt.Sprintf("%s sent of %s", bytesText(*r.ResyncBytes), bytesText(*r.DiskBytes)))
	}
	if r.WritesAcked != nil && r.WritesLost != nil {
		add("writes", *r.WritesLost == 0, fmt.Sprintf("%d acknowledged, %d lost", *r.WritesAcked, *r.WritesLost))
	}
	if r.TCPTotal != nil && r.TCPSurvived != nil {
		add("connections", *r.TCPTotal == *r.TCPSurvived, fmt.Sprintf("%d of %d survived", *r.TCPSurvived, *r.TCPTotal))
	}
}

func (p *proof) print(cc *cli.Context) error {
	verdict := "COLO WORKS HERE"
	if !p.OK {
		verdict = "COLO DOES NOT WORK HERE"
	}
	if p.QEMU != "" {
		fmt.Fprintf(cc.App.Writer, "%s: QEMU %s (%s), %s\n", verdict, p.QEMU, p.Program, p.Accel)
	} else {
		fmt.Fprintln(cc.App.Writer, verdict)
	}
	return printFindings(cc, p.Checks)
}
