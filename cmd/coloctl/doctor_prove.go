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

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/conform"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/provision"
)

// prove finds out whether COLO works on this host, in labs of its own: nodes, VMs and disks of this host are not touched. It runs twice: as typed, and
// as the worker inside the lab in which QEMU is tried without a guest.
func prove(cc *cli.Context) error {
	if lab.Inside() {
		return conform.Inside(cc.Context)
	}
	p, o, err := newProof(cc)
	if err == nil && o != nil {
		fmt.Fprintln(cc.App.ErrWriter, "QEMU alone, without a guest")
		err = conform.Start(cc.Context, *o, os.Args[1:], p)
	}
	if err == nil && p.OK && !cc.Bool("alone") {
		err = runScenarios(cc, p)
	}
	if err != nil {
		return attempt(err, "prove", "", nil)
	}
	if f := format(cc); f != lab.FormatTable {
		err = lab.Encode(cc.App.Writer, f, p)
	} else {
		printProof(cc.App.Writer, p, cc.Bool("failed"))
	}
	if err == nil && !p.OK {
		return &taskError{"doctor", fmt.Errorf("%w: COLO does not work here as it should", errUnwell), "what is said above"}
	}
	return err
}

// newProof looks at what would be run. Where nothing can be tried the options are nil, and the proof says why.
func newProof(cc *cli.Context) (*conform.Proof, *conform.Options, error) {
	p := &conform.Proof{OK: true}
	argv, img := []string{"qemu-system-x86_64"}, []string{"qemu-img"}
	if c, err := config.Load(cc.String("config")); err == nil {
		argv, img = c.QEMU.Command, c.QEMU.Img
	} else if cc.IsSet("config") || !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	if q, i := os.Getenv(provision.QEMUVariable), os.Getenv(provision.QEMUImgVariable); q != "" && i != "" && !cc.IsSet("config") {
		argv, img = []string{q}, []string{i}
	}
	if len(argv) != 1 || len(img) != 1 {
		return nil, nil, fmt.Errorf("qemu.command %q has arguments: the proof takes a program only", argv)
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		p.Add("qemu", err, "", fmt.Sprintf("install QEMU %d or newer (Debian: qemu-system-x86, qemu-utils), or name it in %s and %s",
			colo.LeastTCG, provision.QEMUVariable, provision.QEMUImgVariable))
		return p, nil, nil
	}
	image, err := exec.LookPath(img[0])
	if err != nil {
		p.Add("qemu-img", err, "", "install it (Debian: qemu-utils)")
		return p, nil, nil
	}
	p.Program = path
	features, err := askQEMU(cc.Context, []string{path})
	if err != nil {
		p.Add("qemu starts", err, "", "start it by hand and see what it says")
		return p, nil, nil
	}
	p.QEMU = features.Version.String()
	p.Add("qemu starts", nil, p.QEMU, "")
	_ = os.Setenv(provision.QEMUVariable, path)
	_ = os.Setenv(provision.QEMUImgVariable, image)
	tools, err := provision.Ensure(cc.Context, provision.Options{Out: cc.App.ErrWriter})
	if err != nil {
		return nil, nil, err
	}
	p.Accel = tools.Accel
	said := "tcg: no guest became ready with KVM on this host"
	if p.Accel == "kvm" {
		said = "kvm: a guest became ready with it"
	}
	p.Add("accelerator", nil, said, "")
	var f findings
	f.fit(path, features.Version, p.Accel)
	for _, i := range f {
		var unfit error
		if !i.OK {
			unfit = errors.New(i.Text)
		}
		p.Add(i.Rule, unfit, i.Text, i.Remedy)
	}
	return p, &conform.Options{QEMU: []string{path}, QEMUImg: []string{image}, Accel: p.Accel}, nil
}

// runScenarios completes a proof with a guest, each scenario in a lab of its own.
func runScenarios(cc *cli.Context, p *conform.Proof) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, s := range conform.Scenarios {
		fmt.Fprintf(cc.App.ErrWriter, "%s: %s\n", s.Name, s.Shows)
		result, err := runScenario(cc.Context, self, s.Name, p.Accel, cc.App.ErrWriter)
		if err != nil {
			return err
		}
		p.Judge(result)
	}
	return nil
}

func runScenario(ctx context.Context, self, scenario, accel string, errOut io.Writer) (*lab.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "lab", "run", scenario, "-o", "json")
	cmd.Args[0] = filepath.Base(self)
	cmd.Env = append(os.Environ(), provision.AccelVariable+"="+accel)
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

func printProof(w io.Writer, p *conform.Proof, failed bool) {
	verdict := "COLO WORKS HERE"
	if !p.OK {
		verdict = "COLO DOES NOT WORK HERE"
	}
	if p.QEMU != "" {
		verdict += fmt.Sprintf(": QEMU %s (%s), %s", p.QEMU, p.Program, p.Accel)
	}
	fmt.Fprintln(w, verdict)
	for _, c := range p.Checks {
		mark := "FAIL"
		switch {
		case c.OK:
			mark = "ok  "
		case c.NotTried:
			mark = "-   "
		}
		if !failed || !c.OK {
			printFinding(w, 34, mark, c.Finding)
		}
	}
}
