// Package libvirtd runs a libvirt daemon of its own, beside the host's and without touching it: in a mount namespace where libvirt's folders are those of a
// folder of the caller's, and in the network namespace that its QEMUs shall be in. Of the host only libvirt's folders are made where they are missing, and
// stay empty. It is for tests and the lab, and needs root and Debian's packages
// libvirt-daemon and libvirt-daemon-driver-qemu.
//
// A Daemon's methods are called by one goroutine. The daemon ends with Close (or Stop); the QEMUs that it has started go on, as they do with any libvirtd.
package libvirtd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/coloctl/coloctl/internal/netns"
)

// ErrNotInstalled is returned by Start when this machine has no libvirtd.
var ErrNotInstalled = errors.New("libvirtd is not installed: apt-get install libvirt-daemon libvirt-daemon-driver-qemu")

// Options of a daemon.
type Options struct {
	Dir   string // for everything that libvirt keeps; made if it is missing. Short: it holds a unix socket
	Netns string // path of the network namespace; empty is the caller's
	User  string // whom QEMU runs as: root when empty, or libvirt-qemu
	// Cache is a folder for what libvirt finds out about emulators, which takes seconds; several daemons may share it. In Dir when empty.
	Cache string
	// HostUUID tells libvirts on one machine apart.
	HostUUID string
}

// Daemon is a running libvirtd.
type Daemon struct {
	o    Options
	cmd  *exec.Cmd
	done chan struct{}
	end  error
}

// points are the folders that libvirt was built to use, and ours that take their place.
var points = map[string]string{"/etc/libvirt": "etc", "/run/libvirt": "run", "/var/lib/libvirt": "lib", "/var/cache/libvirt": "cache", "/var/log/libvirt": "log"}

// script runs in the new mount namespace. $1 is the folder, $2 the cache.
const script = `set -e
for p in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt log:/var/log/libvirt; do
	mount --bind "$1/${p%%:*}" "${p#*:}"
done
mount --bind "$2" /var/cache/libvirt
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
# udev would have made them so; some machines have none. A /dev/kvm that root may open and QEMU's user may not makes libvirt doubt what it knows of an
# emulator, and find it out again at each call.
open_to_all() {
	[ -c "$2" ] && [ "$(stat -c %a "$2")" != 666 ] || return 0
	rm -f "$1" && mknod -m 666 "$1" c 10 "$3" && mount --bind "$1" "$2"
}
open_to_all "$1/tun" /dev/net/tun 200 || true
open_to_all "$1/kvm" /dev/kvm 232 || true
exec libvirtd --config "$1/libvirtd.conf" --pid-file "$1/run/libvirtd.pid"
`

// startTimeout bounds the time until the daemon answers.
const startTimeout = 20 * time.Second

// Start starts a daemon and returns when it can be connected to.
func Start(ctx context.Context, o Options) (_ *Daemon, err error) {
	if _, err := exec.LookPath("libvirtd"); err != nil {
		return nil, ErrNotInstalled
	}
	if o.User == "" {
		o.User = "root"
	}
	if o.HostUUID == "" {
		o.HostUUID = "00000000-0000-4000-8000-00000000000a"
	}
	if o.Cache == "" {
		o.Cache = filepath.Join(o.Dir, "cache")
	}
	d := &Daemon{o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	if err := d.prepare(); err != nil {
		return nil, err
	}
	return d, d.Run(ctx)
}

func (d *Daemon) prepare() error {
	for point, name := range points {
		if err := os.MkdirAll(filepath.Join(d.o.Dir, name), 0o755); err != nil {
			return err
		}
		// It stays, empty: to remove it would take the mounts in it away from every other daemon, whatever namespace they are in.
		if err := os.MkdirAll(point, 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{d.LogDir(), d.o.Cache} {
		if err := os.MkdirAll(f, 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{
		"libvirtd.conf": fmt.Sprintf("unix_sock_dir = \"/run/libvirt\"\nunix_sock_rw_perms = \"0700\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n"+
			"log_outputs = \"3:file:%s\"\nhost_uuid = %q\n", filepath.Join(d.o.Dir, "libvirtd.log"), d.o.HostUUID),
		// Neither virtlogd nor a security module nor cgroups of its own: what a bare machine has.
		"etc/qemu.conf": fmt.Sprintf("user = %q\ngroup = %q\nsecurity_driver = \"none\"\nstdio_handler = \"file\"\nremember_owner = 0\ncgroup_controllers = []\nnamespaces = []\n",
			d.o.User, d.o.User),
	}
	// libvirt doesn't start without the user that its package would have made.
	for _, f := range []struct{ name, line string }{{"passwd", "libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin\n"}, {"group", "libvirt-qemu:x:64055:\n"}} {
		text, err := os.ReadFile("/etc/" + f.name)
		if err != nil {
			return err
		}
		if files[f.name] = string(text); !strings.Contains("\n"+string(text), "\nlibvirt-qemu:") {
			files[f.name] += f.line
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(d.o.Dir, name), []byte(text), 0o644); err != nil { //nolint:gosec // read by QEMU's user too
			return err
		}
	}
	return nil
}

// Run starts the daemon anew after Stop.
func (d *Daemon) Run(ctx context.Context) error {
	out, err := os.Create(filepath.Join(d.o.Dir, "out.log"))
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command("sh", "-c", script, "libvirtd", d.o.Dir, d.o.Cache) //nolint:noctx // it ends by Stop
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Unshareflags: syscall.CLONE_NEWNS}
	if err := netns.Start(d.o.Netns, cmd); err != nil {
		return err
	}
	d.cmd, d.done = cmd, make(chan struct{})
	go func() { d.end = cmd.Wait(); close(d.done) }()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", d.Socket())
		if err == nil {
			return conn.Close()
		}
		select {
		case <-tick.C:
		case <-d.done:
			return fmt.Errorf("libvirtd ended at once: %w: %s", d.end, d.words())
		case <-ctx.Done():
			return fmt.Errorf("libvirtd does not answer: %w: %s", err, d.words())
		}
	}
}

// words are the last lines of the daemon's logs.
func (d *Daemon) words() string {
	var all []string
	for _, name := range []string{"out.log", "libvirtd.log"} {
		text, _ := os.ReadFile(filepath.Join(d.o.Dir, name))
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		all = append(all, lines[max(0, len(lines)-3):]...)
	}
	return strings.Join(all, " | ")
}

// Socket is where the daemon listens.
func (d *Daemon) Socket() string { return filepath.Join(d.o.Dir, "run", "libvirt-sock") }

// LogDir is where it puts the output of its QEMUs.
func (d *Daemon) LogDir() string { return filepath.Join(d.o.Dir, "log", "qemu") }

// PID is the daemon's process.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Running says whether it does: somebody else may have ended it.
func (d *Daemon) Running() bool {
	if d.cmd == nil {
		return false
	}
	select {
	case <-d.done:
		return false
	default:
		return true
	}
}

// Lose is Stop with the loss of what a host forgets when its power fails.
func (d *Daemon) Lose() error {
	if err := d.Stop(); err != nil {
		return err
	}
	run := filepath.Join(d.o.Dir, "run")
	if err := os.RemoveAll(run); err != nil {
		return err
	}
	return os.Mkdir(run, 0o755)
}

// Stop ends the daemon and nothing else.
func (d *Daemon) Stop() error {
	if d.cmd == nil {
		return nil
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(10 * time.Second)
	defer t.Stop()
	select {
	case <-d.done:
	case <-t.C:
		_ = d.cmd.Process.Kill()
		<-d.done
	}
	d.cmd = nil
	_ = os.Remove(d.Socket())
	return nil
}

// Close ends the daemon. Its folder stays for its caller to remove.
func (d *Daemon) Close() error { return d.Stop() }

// Virsh runs virsh against the daemon and returns what it printed.
func (d *Daemon) Virsh(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"-q", "-c", d.URI()}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("virsh %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// URI is what virsh -c takes.
func (d *Daemon) URI() string { return "qemu+unix:///system?socket=" + d.Socket() }
