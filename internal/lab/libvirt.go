package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/config"
	"github.com/coloctl/coloctl/internal/libvirtd"
)

// With config.LauncherLibvirt each node has a libvirtd of its own, which starts the node's QEMUs. It belongs to the host: it goes down and comes back with
// the power, and not with colod.

// checkLauncher finds out before a lab is made whether it can have what starts its QEMUs.
func checkLauncher(kind string, s *Scenario) error {
	switch {
	case kind == config.LauncherLibvirt, s != nil && s.Libvirt:
		for _, name := range []string{"libvirtd", "virsh"} {
			if _, err := exec.LookPath(name); err != nil {
				return &PreconditionError{Op: "libvirt", Err: err, Remedy: "Install it (Debian: libvirt-daemon, libvirt-daemon-driver-qemu, libvirt-clients)."}
			}
		}
		if os.Geteuid() != 0 {
			return &PreconditionError{Op: "libvirt", Err: os.ErrPermission, Remedy: "A lab whose QEMUs are started by libvirt needs root."}
		}
	case kind != config.LauncherColod && kind != "":
		return fmt.Errorf("%w: %q: expected %s or %s", ErrLauncher, kind, config.LauncherColod, config.LauncherLibvirt)
	}
	return nil
}

// startLibvirt starts the node's libvirtd, if the lab has them and it doesn't run.
func (n *Node) startLibvirt(ctx context.Context) (err error) {
	switch {
	case n.lab.opts.Launcher != config.LauncherLibvirt:
		return nil
	case n.virt == nil:
		cache := ""
		if dir, err := os.UserCacheDir(); err == nil {
			cache = filepath.Join(dir, "coloctl", "libvirt")
		}
		n.virt, err = libvirtd.Start(ctx, libvirtd.Options{
			Dir: n.path("libvirt"), Netns: n.lab.Topology.Nodes[n.Name].Netns(), Cache: cache, HostUUID: "00000000-0000-4000-8000-0000000000" + strings.Repeat(n.Name[1:], 2),
		})
		return err
	case n.virt.Running():
		return nil
	}
	return n.virt.Run(ctx)
}

// RestartLibvirt ends the node's libvirtd, and starts it again after a while. Its QEMUs go on.
func (n *Node) RestartLibvirt(ctx context.Context, away time.Duration) error {
	if n.virt == nil {
		return fmt.Errorf("%s: its QEMUs aren't started by libvirt", n.Name)
	}
	if err := n.virt.Stop(); err != nil {
		return err
	}
	t := time.NewTimer(away)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return n.virt.Run(ctx)
}

// agreeTimeout is how long libvirt may take to notice what has happened to a QEMU.
const agreeTimeout = 10 * time.Second

// agree compares what virsh lists on each node with what its colod says: exactly the copies that run. It does nothing in a lab without libvirt.
func (l *Lab) agree(ctx context.Context) error {
	for _, n := range l.nodes {
		if n.virt == nil || n.off || n.daemon == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, agreeTimeout)
		err := poll(ctx, func() (bool, error) {
			status, err := n.Status(ctx)
			if err != nil && !errors.Is(err, colo.ErrNoVM) {
				return false, err
			}
			listed, err := n.virt.Virsh(ctx, "list", "--all", "--name")
			if err != nil {
				return false, err
			}
			if has := strings.TrimSpace(listed) == VM; has != (status.PID != 0) {
				return false, fmt.Errorf("virsh lists %q on %s, whose colod has the VM %s with process %d", strings.TrimSpace(listed), n.Name, status.State, status.PID)
			}
			return true, nil
		})
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

var restartLibvirt = undisturbed("libvirtd is restarted on both nodes, one after the other", func(ctx context.Context, r *Run) error {
	for _, name := range NodeNames {
		r.Tell.Say("%s: libvirtd is restarted", name)
		if err := r.Lab.Node(name).RestartLibvirt(ctx, time.Second); err != nil {
			return err
		}
	}
	return nil
})
