package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/coloctl/coloctl/colo"
)

// Starter starts QEMUs as domains. It implements [colo.Starter].
type Starter struct {
	Address
	LogDir string // of libvirt's domains; libvirt's own for the URI when empty
	Netns  string // path of the network namespace where the node's taps are; empty is the caller's. libvirtd has to be in it
}

var _ colo.Starter = Starter{}

// startTimeout bounds the start of a domain, and the question whether it could be started: libvirt may have to find out first what the emulator can do,
// by starting it several times.
const startTimeout = time.Minute

// forgetTimeout bounds what is only for libvirt's books.
const forgetTimeout = 5 * time.Second

// Name implements [colo.Starter].
func (Starter) Name() string { return "libvirt" }

// EndsWithGuest implements [colo.Starter]: the QEMU driver refuses the action "preserve" for on_poweroff.
func (Starter) EndsWithGuest() bool { return true }

// Log implements [colo.Starter].
func (s Starter) Log(vm string) string {
	dir := s.LogDir
	if dir == "" {
		dir = "/var/log/libvirt/qemu"
		if s.uri() == uriSession {
			cache, err := os.UserCacheDir()
			if err != nil {
				return ""
			}
			dir = filepath.Join(cache, "libvirt/qemu/log")
		}
	}
	return filepath.Join(dir, vm+".log")
}

// Ready finds out whether libvirtd can start QEMUs for this node, and says which it is.
func (s Starter) Ready(ctx context.Context) (string, error) {
	uid, _, err := s.User(ctx)
	if err != nil {
		return "", err
	}
	c, err := Dial(ctx, s.Address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := s.sameNetwork(c); err != nil {
		return "", err
	}
	var v uint64
	if err := c.call(ctx, "ask for its version", func(l *golibvirt.Libvirt) (err error) {
		v, err = l.ConnectGetLibVersion()
		return err
	}); err != nil {
		return "", err
	}
	return fmt.Sprintf("libvirt %d.%d.%d on %s; it runs QEMU as user %d", v/1e6, v/1e3%1e3, v%1e3, c.at, uid), nil
}

// sameNetwork sees whether libvirtd, and so its QEMUs, are where the taps are.
func (s Starter) sameNetwork(c *Conn) error {
	cred, err := c.peer()
	if err != nil {
		return err
	}
	own := s.Netns
	if own == "" {
		own = "/proc/thread-self/ns/net" // the process has threads in other namespaces
	}
	a, err := os.Stat(own)
	if err != nil {
		return err
	}
	b, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", cred.Pid))
	if err != nil {
		return nil //nolint:nilerr // whoever made the socket has gone, or may not be looked at
	}
	if !os.SameFile(a, b) {
		return fmt.Errorf("libvirtd (process %d) is in another network namespace than this node's taps (%s): its QEMUs could not open them", cred.Pid, own)
	}
	return nil
}

// User implements [colo.Starter]. A libvirtd of the system's says whom it runs QEMU as; one of a user's can do so only as that user.
func (s Starter) User(ctx context.Context) (uid, gid int, err error) {
	c, err := Dial(ctx, s.Address)
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	var text string
	if err := c.call(ctx, "ask for its capabilities", func(l *golibvirt.Libvirt) error {
		b, err := l.Capabilities()
		text = string(b)
		return err
	}); err != nil {
		return 0, 0, err
	}
	var caps libvirtxml.Caps
	if err := caps.Unmarshal(text); err != nil {
		return 0, 0, fmt.Errorf("libvirt: its capabilities: %w", err)
	}
	for _, m := range caps.Host.SecModel {
		if m.Name != "dac" {
			continue
		}
		for _, l := range m.Labels {
			if l.Type == "kvm" || l.Type == "qemu" {
				return parseLabel(l.Value)
			}
		}
	}
	cred, err := c.peer()
	if err != nil {
		return 0, 0, err
	}
	return int(cred.Uid), int(cred.Gid), nil
}

// parseLabel reads "+64055:+106".
func parseLabel(text string) (uid, gid int, err error) {
	u, g, ok := strings.Cut(text, ":")
	if ok {
		if uid, err = strconv.Atoi(strings.TrimPrefix(u, "+")); err == nil {
			gid, err = strconv.Atoi(strings.TrimPrefix(g, "+"))
		}
	}
	if !ok || err != nil {
		return 0, 0, fmt.Errorf("libvirt: %q is not a user and a group", text)
	}
	return uid, gid, nil
}

// Check implements [colo.Starter].
func (s Starter) Check(ctx context.Context, r colo.StartRequest) error {
	r, err := absolute(r)
	if err != nil {
		return err
	}
	c, err := Dial(ctx, s.Address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := s.sameNetwork(c); err != nil {
		return err
	}
	if _, err := c.ours(ctx, r.Spec.Name); err != nil && !errors.Is(err, ErrNoDomain) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	opt := func(s string) golibvirt.OptString { return golibvirt.OptString{s} }
	return c.call(ctx, "look at the emulator "+r.QEMU, func(l *golibvirt.Libvirt) error {
		_, err := l.ConnectGetDomainCapabilities(opt(r.QEMU), opt("x86_64"), opt(r.Spec.Machine), opt(virtType(r.Accel)), 0)
		return err
	})
}

// absolute gives the emulator the path that libvirt wants.
func absolute(r colo.StartRequest) (colo.StartRequest, error) {
	path, err := exec.LookPath(r.QEMU)
	if err == nil {
		r.QEMU, err = filepath.Abs(path)
	}
	return r, err
}

// ours finds the VM's domain, and refuses one that was made by somebody else.
func (c *Conn) ours(ctx context.Context, vm string) (golibvirt.Domain, error) {
	d, err := c.lookup(ctx, vm)
	if err != nil {
		return d, err
	}
	var text string
	err = c.call(ctx, "ask what made domain "+vm, func(l *golibvirt.Libvirt) (err error) {
		text, err = l.DomainGetMetadata(d, int32(golibvirt.DomainMetadataElement), golibvirt.OptString{markNS}, 0)
		return err
	})
	var refused *Error
	if errors.As(err, &refused) && refused.Code == uint32(golibvirt.ErrNoDomainMetadata) || err == nil && text == "" {
		return d, fmt.Errorf("%w: %s: rename it, or undefine it after coloctl vm import", ErrNameTaken, vm)
	}
	return d, err
}

// Start implements [colo.Starter].
func (s Starter) Start(ctx context.Context, r colo.StartRequest) (pid int, err error) {
	if r, err = absolute(r); err != nil {
		return 0, err
	}
	text, err := domainXML(r)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.Forget(ctx, r.Spec.Name); err != nil {
		return 0, err
	}
	c, err := Dial(ctx, s.Address)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	defer func() {
		if err != nil { // libvirtd may have gone on with it
			_ = s.Forget(context.WithoutCancel(ctx), r.Spec.Name)
		}
	}()
	err = c.call(ctx, "start domain "+r.Spec.Name, func(l *golibvirt.Libvirt) error {
		_, err := l.DomainCreateXML(text, golibvirt.DomainStartPaused)
		return err
	})
	if err != nil {
		return 0, err
	}
	return listener(ctx, r.Monitor)
}

// listener finds the process that listens on a socket. The kernel knows it; libvirt does not tell.
func listener(ctx context.Context, path string) (int, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	cred, err := peerOf(conn)
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// Forget implements [colo.Starter]: libvirt notices by itself that a QEMU has ended, but not at once.
func (s Starter) Forget(ctx context.Context, vm string) error {
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	c, err := Dial(ctx, s.Address)
	if err != nil {
		return err
	}
	defer c.Close()
	d, err := c.ours(ctx, vm)
	switch {
	case errors.Is(err, ErrNoDomain):
		return nil
	case err != nil:
		return err
	}
	err = c.call(ctx, "end domain "+vm, func(l *golibvirt.Libvirt) error { return l.DomainDestroyFlags(d, golibvirt.DomainDestroyDefault) })
	var refused *Error
	if errors.As(err, &refused) && (refused.Code == uint32(golibvirt.ErrNoDomain) || refused.Code == uint32(golibvirt.ErrOperationInvalid)) {
		return nil // it has noticed meanwhile
	}
	return err
}
