package blockrepl

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coloctl/coloctl/internal/qemutest"
	"github.com/coloctl/coloctl/qmp"
)

// What follows drives real QEMUs without a guest: a machine that idles in its
// firmware. Guest writes are made by qemu-io on the disk's device.

func images(t testing.TB) Images { return Images{QEMUImg: []string{qemutest.Img(t)}} }

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// host is a place for one VM's images and its QEMU.
type host struct {
	t     testing.TB
	name  string
	dir   string
	disks []Disk
	to    Address // of its exports
	mig   int     // its port for the migration

	cmd    *exec.Cmd
	exited chan struct{}
	c, r   *qmp.Client
	events *qmp.Subscription
}

const mib = 1 << 20

// newHost makes images of these formats, all of 64 MiB, named vda, vdb, …
func newHost(t testing.TB, name string, formats ...string) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "blockrepl") // short: it holds unix sockets
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, name: name, dir: dir, to: Address{Host: "127.0.0.1", Port: freePort(t)}, mig: freePort(t)}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for i, f := range formats {
		d := Disk{Name: "vd" + string(rune('a'+i)), Format: f, Size: 64 * mib, Serial: fmt.Sprintf("S%d", i)}
		d.Path = filepath.Join(dir, d.Name+"."+f)
		if err := images(t).Create(testContext(t), d); err != nil {
			t.Fatal(err)
		}
		h.disks = append(h.disks, d)
	}
	return h
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// start runs QEMU. It connects to us, so nothing has to wait for its sockets.
func (h *host) start(ctx context.Context, blockArgs []string, more ...string) {
	h.t.Helper()
	sockets := make([]net.Listener, 2)
	args := []string{"-accel", "tcg", "-M", "pc", "-m", "32", "-nodefaults", "-display", "none", "-no-shutdown", "-name", h.name}
	for i := range sockets {
		path := filepath.Join(h.dir, fmt.Sprintf("qmp%d", i))
		l, err := net.Listen("unix", path)
		if err != nil {
			h.t.Fatal(err)
		}
		defer l.Close()
		sockets[i] = l
		args = append(args, "-qmp", "unix:"+path)
	}
	args = append(append(append(args, blockArgs...), DeviceArgs(h.disks)...), more...)
	cmd := exec.Command(qemutest.QEMU(h.t), args...)
	stderr, err := os.Create(filepath.Join(h.dir, "stderr"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer stderr.Close()
	cmd.Stderr = stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		if err := cmd.Wait(); err != nil && !strings.Contains(err.Error(), "killed") {
			h.t.Logf("QEMU %s: %v", h.name, err)
		}
	}()
	h.cmd, h.exited = cmd, exited
	h.t.Cleanup(h.kill)
	clients := make([]*qmp.Client, 2)
	for i, l := range sockets {
		stop := context.AfterFunc(ctx, func() { l.Close() })
		died := make(chan struct{})
		go func() {
			defer close(died)
			select {
			case <-exited:
				l.Close()
			case <-ctx.Done():
			}
		}()
		conn, err := l.Accept()
		stop()
		if err != nil {
			h.t.Fatalf("QEMU %s did not start: %v\n%s", h.name, err, h.stderr())
		}
		if clients[i], err = qmp.NewClient(ctx, conn, &qmp.Options{Name: h.name}); err != nil {
			h.t.Fatal(err)
		}
	}
	h.c, h.r = clients[0], clients[1]
	h.events = h.c.Subscribe(qmp.SubscribeOptions{Buffer: 4096})
	h.t.Cleanup(func() { clients[0].Close(); clients[1].Close() })
}

// state is for messages about a wait that has failed.
func (h *host) state() string {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	status, err := h.c.QueryStatus(ctx)
	colo, _ := h.c.QueryColoStatus(ctx)
	return fmt.Sprintf("%s: %+v %+v %v\n%s", h.name, status, colo, err, h.stderr())
}

func (h *host) stderr() string {
	b, _ := os.ReadFile(filepath.Join(h.dir, "stderr"))
	return string(b)
}

func (h *host) startPrimary(ctx context.Context) {
	h.t.Helper()
	h.start(ctx, PrimaryArgs(h.disks))
}

// startStandby starts QEMU with fresh overlays and exports the disks.
func (h *host) startStandby(ctx context.Context) {
	h.t.Helper()
	must(h.t, images(h.t).CreateOverlays(ctx, h.dir, h.disks))
	h.start(ctx, StandbyArgs(h.disks, h.dir), "-incoming", "defer")
	must(h.t, qmp.SetColoCapabilities(ctx, h.c))
	must(h.t, Export(ctx, h.c, h.disks, h.to))
	must(h.t, h.c.MigrateIncoming(ctx, qmp.Channel{Inet: &qmp.InetAddr{Host: "127.0.0.1", Port: h.mig}}))
}

func (h *host) kill() {
	if h.cmd == nil {
		return
	}
	h.cmd.Process.Kill()
	<-h.exited
	h.cmd = nil
}

func (h *host) freeze() { h.cmd.Process.Signal(syscall.SIGSTOP) }
func (h *host) thaw()   { h.cmd.Process.Signal(syscall.SIGCONT) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// io runs a qemu-io command as the guest on disk number i.
func (h *host) io(ctx context.Context, i int, command string) {
	h.t.Helper()
	line := fmt.Sprintf("qemu-io -d /machine/peripheral/%s/virtio-backend %q", h.disks[i].device(), command)
	out, err := h.c.HumanMonitorCommand(ctx, line)
	if err != nil {
		h.t.Fatalf("%s on %s: %v", command, h.name, err)
	}
	for _, bad := range []string{"rror", "failed", "nvalid", "ermission"} {
		if strings.Contains(out, bad) {
			h.t.Fatalf("%s on %s: %s", command, h.name, out)
		}
	}
}

func (h *host) await(ctx context.Context, what string, match func(*qmp.Event) bool) {
	h.t.Helper()
	if _, err := h.events.Wait(ctx, match); err != nil {
		h.t.Fatalf("%s waits for %s: %v\n%s", h.name, what, err, h.stderr())
	}
}

func (h *host) awaitMigration(ctx context.Context, status string) {
	h.t.Helper()
	h.await(ctx, "migration "+status, func(e *qmp.Event) bool {
		var d struct{ Status string }
		if e.Name == "MIGRATION" && json.Unmarshal(e.Data, &d) == nil {
			if d.Status == "failed" {
				h.t.Errorf("migration of %s failed: %s", h.name, h.stderr())
			}
			return d.Status == status
		}
		return false
	})
}

// never is a checkpoint delay, in ms. All checkpoints of these tests are asked
// for: qemu-io writes also while the guest is stopped, which a guest can't, and a
// write during a checkpoint corrupts the overlays that the secondary is emptying.
const never = 3_600_000

// checkpoint makes one and waits until the guest runs again. Setting the delay,
// to whatever value, is how to ask for it.
func (h *host) checkpoint(ctx context.Context) {
	h.t.Helper()
	sub := h.c.Subscribe(qmp.SubscribeOptions{Match: qmp.Named("STOP", "RESUME")})
	defer sub.Close()
	must(h.t, h.c.MigrateSetParameters(ctx, map[string]any{"x-checkpoint-delay": never}))
	stopped := false
	_, err := sub.Wait(ctx, func(e *qmp.Event) bool {
		stopped = stopped || e.Name == "STOP"
		return stopped && e.Name == "RESUME"
	})
	if err != nil {
		h.t.Fatalf("%s waits for a checkpoint: %v\n%s", h.name, err, h.state())
	}
}

// toSwitchover migrates up to the moment when the guest is stopped.
func (h *host) toSwitchover(ctx context.Context, standby *host) {
	h.t.Helper()
	must(h.t, qmp.SetColoCapabilities(ctx, h.c))
	must(h.t, h.c.MigrateSetParameters(ctx, map[string]any{"x-checkpoint-delay": never, "max-bandwidth": 10_000_000_000}))
	must(h.t, h.c.Migrate(ctx, qmp.Channel{Inet: &qmp.InetAddr{Host: "127.0.0.1", Port: standby.mig}}))
	h.awaitMigration(ctx, "pre-switchover")
}

// protect attaches a standby and waits until COLO was seen to run. It returns
// how many bytes were copied.
func (h *host) protect(ctx context.Context, standby *host, o Options) int64 {
	h.t.Helper()
	o.Rescue = h.r
	m := NewMirror(h.c, h.disks, standby.to, o)
	must(h.t, m.Sync(ctx))
	h.startCOLO(ctx, standby, m)
	return m.Copied()
}

func (h *host) startCOLO(ctx context.Context, standby *host, m *Mirror) {
	h.t.Helper()
	h.toSwitchover(ctx, standby)
	must(h.t, m.Switch(ctx))
	must(h.t, h.c.MigrateContinue(ctx, "pre-switchover"))
	h.awaitMigration(ctx, "colo")
	standby.awaitMigration(ctx, "colo")
	// Until the guest runs again the timer for checkpoints doesn't exist, and
	// setting the delay makes QEMU 11.1 abort.
	h.await(ctx, "COLO's start", func(e *qmp.Event) bool { return e.Name == "RESUME" })
	h.checkpoint(ctx)
}

// lostPeer is the failover of a primary.
func (h *host) lostPeer(ctx context.Context) {
	h.t.Helper()
	cut := []qmp.YankInstance{{Type: "migration"}}
	for _, d := range h.disks {
		cut = append(cut, qmp.YankInstance{Type: "block-node", NodeName: d.nbd()})
	}
	must(h.t, h.r.Yank(ctx, cut...))
	must(h.t, h.c.ColoLostHeartbeat(ctx))
	must(h.t, Detach(ctx, h.c, h.disks))
}

// promote is the failover of a secondary.
func (h *host) promote(ctx context.Context) {
	h.t.Helper()
	must(h.t, Promote(ctx, h.c, h.disks))
	must(h.t, h.c.ColoLostHeartbeat(ctx))
	must(h.t, WaitCommitted(ctx, h.c, h.disks))
}

// sameDisks fails if the images of both differ in a byte that a guest could
// read. The flush writes what QEMU keeps of a qcow2's tables, on both sides.
func (h *host) sameDisks(ctx context.Context, other *host) {
	h.t.Helper()
	for i, d := range h.disks {
		if h.cmd != nil {
			h.io(ctx, i, "flush")
		}
		o := other.disks[i]
		if out, err := images(h.t).run(ctx, "compare", "-U", "-f", d.Format, "-F", o.Format, d.Path, o.Path); err != nil {
			h.t.Errorf("disk %s of %s and %s differ: %s %v", d.Name, h.name, other.name, out, err)
		}
	}
}
