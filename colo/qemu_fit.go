package colo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/netcompare"
	"github.com/coloctl/coloctl/qmp"
)

// UnfitError says why a QEMU can't protect VMs.
type UnfitError struct {
	QEMU, Reason, Remedy string
}

func (e *UnfitError) Error() string { return fmt.Sprintf("%s: %s (%s)", e.QEMU, e.Reason, e.Remedy) }

// startProbe starts a QEMU without a machine, confined as the VMs' will be.
func (l *qemuLauncher) startProbe(ctx context.Context, dir string) (*process, *qmp.Client, error) {
	if u := l.cfg.User; u != nil {
		if err := os.Chown(dir, int(u.UID), int(u.GID)); err != nil {
			return nil, nil, err
		}
	}
	sock := filepath.Join(dir, "qmp")
	for l.sandbox = sandbox; ; l.sandbox = nil {
		argv := slices.Concat(l.cfg.QEMU, []string{"-M", "none", "-nodefaults", "-display", "none", "-S", "-qmp", "unix:" + sock + ",server=on,wait=off"}, l.sandbox)
		p, err := startProcess("", l.cfg.User, argv, filepath.Join(dir, "log"))
		if err != nil {
			return nil, nil, err
		}
		c, err := dialQMP(ctx, p, sock, l.cfg.Name+" probe")
		if err == nil {
			return p, c, nil
		}
		_ = p.kill(context.WithoutCancel(ctx))
		if l.sandbox == nil || !strings.Contains(p.lastWords(), "sandbox") {
			return nil, nil, err
		}
		l.cfg.Log.Warn("this QEMU was built without seccomp: it is not confined", "node", l.cfg.Name, "qemu", l.cfg.QEMU[0])
	}
}

// newLauncher asks the QEMU what it can do, by starting one without a machine.
func newLauncher(ctx context.Context, cfg NodeConfig) (*qemuLauncher, error) {
	l := &qemuLauncher{cfg: cfg, images: blockrepl.Images{QEMUImg: cfg.QEMUImg}, host: netcompare.Host{Netns: cfg.Netns, TapUser: uint32(os.Geteuid()), TapGroup: uint32(os.Getegid())}}
	if cfg.User != nil {
		if err := os.MkdirAll(cfg.RunDir, 0o755); err != nil { //nolint:gosec // QEMU's user has to get through it
			return nil, err
		}
	}
	dir := filepath.Join(cfg.RunDir, "probe")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(ctx, launchTimeout)
	defer cancel()
	p, c, err := l.startProbe(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.kill(context.WithoutCancel(ctx)) }()
	defer c.Close()
	f, err := qmp.Probe(ctx, c)
	if err != nil {
		return nil, err
	}
	v := f.Version.QEMU
	l.unfit, l.version = Fit(cfg.QEMU[0], f.Version, cfg.Accel), fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro)
	if err := f.Require(qmp.ColoFeatures()...); err != nil {
		return nil, &UnfitError{cfg.QEMU[0], err.Error(), "install a QEMU with replication and COLO built in, such as Debian's"}
	}
	if err := l.checkCrypt(ctx, f, c, dir); err != nil {
		return nil, err
	}
	if l.has, err = probeHardware(ctx, c, cfg.QEMU[0], l.version); err != nil {
		return nil, err
	}
	if l.noMPTCP = l.host.CheckMPTCP(ctx); l.noMPTCP == nil {
		l.noMPTCP = f.Require("mptcp")
	}
	return l, nil
}

// Major versions of QEMU that can protect VMs.
const (
	// LeastQEMU is the first whose COLO starts after a migration that has waited for us before its last step. Those before take it for an ordinary
	// migration, which ends (seen on 7.2, and in the source of 8.2).
	LeastQEMU = 10
	// LeastTCG is the first whose checkpoints don't deadlock under TCG.
	LeastTCG = 11
)

// Fit says why a QEMU that has all that COLO needs can't protect VMs all the same; nil if it can, as far as is known.
func Fit(program string, v qmp.Version, accel string) error {
	version := fmt.Sprintf("QEMU %d.%d.%d", v.QEMU.Major, v.QEMU.Minor, v.QEMU.Micro)
	switch {
	case v.QEMU.Major < LeastQEMU:
		return &UnfitError{program, version + " ends a migration that waits before its last step without starting COLO", fmt.Sprintf("use QEMU %d or newer", LeastTCG)}
	case v.QEMU.Major == 10 && (v.QEMU.Minor == 0 && v.QEMU.Micro < 7 || v.QEMU.Minor == 1):
		return &UnfitError{program, version + " does not start COLO, by its source", fmt.Sprintf("use QEMU 10.0.7 or a newer 10.0, or %d or newer", LeastTCG)}
	case accel == "tcg" && v.QEMU.Major < LeastTCG:
		return &UnfitError{program, version + " deadlocks at COLO's checkpoints under TCG", fmt.Sprintf("use KVM, or QEMU %d or newer", LeastTCG)}
	}
	return nil
}

// NewLauncher returns the launcher that a node of this configuration has when its Launcher is nil, for programs that drive copies by themselves, and for
// launchers built upon it. Of the configuration only what is about QEMUs is read. Unlike [NewNode] it takes a QEMU that is known to fail at checkpoints.
func NewLauncher(ctx context.Context, cfg NodeConfig) (Launcher, error) {
	cfg.setDefaults()
	l, err := newLauncher(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return l, nil
}
