package qmp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/digitalocean/go-qemu/qemu"
	goqemu "github.com/digitalocean/go-qemu/qmp"

	"github.com/coloctl/coloctl/qmp"
)

// anyQEMU returns a client of a QEMU without any device.
func anyQEMU(t testing.TB) *qmp.Client {
	t.Helper()
	v := startQEMU(t, "-M", "none")
	return v.dial(t, v.path, nil)
}

// The schema is one line of some 250 KB; go-qemu's own client dies of it.
func TestQEMUSchema(t *testing.T) {
	c := anyQEMU(t)
	raw, err := c.QueryQMPSchema(t.Context())
	if err != nil || len(raw) < 64<<10 {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	f, err := qmp.Probe(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if f.Version.QEMU.Major >= 11 {
		if err := f.Require(append(qmp.ColoFeatures(), "oob")...); err != nil {
			t.Error(err)
		}
		if m := f.Missing(qmp.FeatureNames()...); len(m) > 0 {
			t.Errorf("QEMU %s lacks %q", f.Version, m)
		}
	}
	if err := f.Require("x-raft"); !errors.Is(err, qmp.ErrNotSupported) {
		t.Errorf("got %v", err)
	}
	if err := f.Check("chardev-add", map[string]any{"id": "x", "backend": map[string]any{"type": "socket",
		"data": map[string]any{"addr": qmp.UnixLegacy("/x"), "wibble": 1}}}); err == nil {
		t.Error("an unknown argument was accepted")
	}
	if _, err := c.QueryStatus(t.Context()); err != nil {
		t.Errorf("the connection must live on: %v", err)
	}
}

func TestQEMULineTooLong(t *testing.T) {
	v := startQEMU(t, "-M", "none")
	c := v.dial(t, v.path, &qmp.Options{MaxLine: 64 << 10})
	_, err := c.QueryQMPSchema(t.Context())
	var long *qmp.LineTooLongError
	if !errors.As(err, &long) || !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func TestQEMUErrorsAndEvents(t *testing.T) {
	v := startQEMU(t, "-M", "pc")
	c := v.dial(t, v.path, nil)
	ctx := t.Context()
	sub := c.Subscribe(qmp.SubscribeOptions{})
	if err := c.Execute(ctx, "no-such-command", nil, nil); !qmp.IsClass(err, qmp.ClassCommandNotFound) || !errors.Is(err, qmp.ErrNotSupported) {
		t.Errorf("got %v", err)
	}
	if err := c.BlockJobCancel(ctx, "none", false); !qmp.IsClass(err, qmp.ClassDeviceNotActive) {
		t.Errorf("got %v", err)
	}
	if err := c.Cont(ctx); err != nil {
		t.Fatal(err)
	}
	if e, err := sub.Wait(ctx, qmp.Named("RESUME")); err != nil || time.Since(e.Time).Abs() > time.Minute {
		t.Errorf("got %+v, %v", e, err)
	}
	m, err := c.MachineStatus(ctx)
	if err != nil || !m.Status.Running || m.Colo.Mode != "none" {
		t.Errorf("got %+v, %v", m, err)
	}
	if err := c.Quit(ctx); err != nil {
		t.Errorf("quit: %v", err)
	}
	if e, err := sub.Wait(ctx, qmp.Named("SHUTDOWN")); err != nil {
		t.Errorf("got %+v, %v", e, err)
	}
	<-c.Done()
	if !errors.Is(c.Err(), qmp.ErrClosed) {
		t.Errorf("ended by %v", c.Err())
	}
}

func TestQEMUColoCapabilities(t *testing.T) {
	c := anyQEMU(t)
	if err := qmp.SetColoCapabilities(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	caps, err := c.QueryMigrateCapabilities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x-colo", "events", "pause-before-switchover"} {
		if !caps[name] {
			t.Errorf("%s is off", name)
		}
	}
}

// A second client of one socket must not wait for ever.
func TestQEMUSocketTaken(t *testing.T) {
	v := startQEMU(t, "-M", "none")
	v.dial(t, v.path, nil)
	_, err := qmp.Dial(t.Context(), v.path, &qmp.Options{HandshakeTimeout: 100 * time.Millisecond})
	if !errors.Is(err, qmp.ErrTimeout) {
		t.Errorf("got %v", err)
	}
}

func TestQEMUKilled(t *testing.T) {
	v := startQEMU(t, "-M", "none")
	c := v.dial(t, v.path, nil)
	v.cmd.Process.Signal(syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.QueryStatus(ctx); !errors.Is(err, qmp.ErrTimeout) {
		t.Errorf("frozen: %v", err)
	}
	v.cmd.Process.Kill()
	<-c.Done()
	if _, err := c.QueryStatus(t.Context()); !errors.Is(err, qmp.ErrClosed) {
		t.Errorf("killed: %v", err)
	}
}

// The rescue of a QEMU whose main loop hangs on a frozen peer. A naive client
// on the other socket has meanwhile lost its out-of-band commands, because it
// has eight in-band ones waiting; ours hasn't, though it was asked for more.
func TestQEMURescueByYank(t *testing.T) {
	ctx := t.Context()
	peer := startQEMU(t, "-M", "none")
	pc := peer.dial(t, peer.path, nil)
	sock := filepath.Join(filepath.Dir(peer.path), "nbd")
	must(t,
		pc.BlockdevAdd(ctx, map[string]any{"driver": "null-co", "node-name": "n", "size": 1 << 20, "read-zeroes": true}),
		pc.Execute(ctx, "nbd-server-start", map[string]any{"addr": qmp.UnixLegacy(sock)}, nil),
		pc.BlockExportAdd(ctx, qmp.BlockExport{Type: "nbd", ID: "e", NodeName: "n", Name: "n", Writable: true}),
	)
	v := startQEMU(t, "-M", "pc")
	c := v.dial(t, v.path, nil)
	must(t, c.BlockdevAdd(ctx, map[string]any{"driver": "nbd", "node-name": "nbd-vda", "export": "n",
		"server": map[string]string{"type": "unix", "path": sock}}))
	naive := newNaive(t, v)
	// A write that has to be flushed. QEMU reports its success elsewhere.
	if out, err := c.HumanMonitorCommand(ctx, `qemu-io nbd-vda "write 0 4k"`); err != nil || out != "" {
		t.Fatalf("%q, %v", out, err)
	}

	peer.cmd.Process.Signal(syscall.SIGSTOP)
	stopped := make(chan error, 1)
	go func() { stopped <- c.Stop(ctx) }()
	queryStatus := func() error {
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		_, err := c.QueryStatus(short)
		return err
	}
	for queryStatus() == nil { // until the stop is there and hangs
	}

	naive.send(t, 10, `{"execute":"query-status"}`)
	naive.send(t, 1, `{"exec-oob":"query-yank","id":"oob"}`)
	for range 12 {
		if err := queryStatus(); !errors.Is(err, qmp.ErrTimeout) {
			t.Errorf("in band while stop hangs: %v", err)
		}
	}
	select {
	case <-naive.oob:
		t.Error("eight waiting commands don't stop this QEMU from reading: the bound of one in flight can be lifted")
	default:
	}

	instances, err := c.QueryYank(ctx)
	if err != nil || len(instances) == 0 {
		t.Fatalf("%v, %v", instances, err)
	}
	start := time.Now()
	if err := c.Yank(ctx, qmp.YankInstance{Type: "block-node", NodeName: "nbd-vda"}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-stopped:
		t.Logf("stop returned %v after the yank: %v", time.Since(start), err)
	case <-time.After(10 * time.Second):
		t.Fatal("stop still hangs after the yank")
	}
	if s, err := c.QueryStatus(ctx); err != nil || s.Running {
		t.Errorf("got %+v, %v", s, err)
	}
	<-naive.oob // comes once the others are out of the way
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// naive is a client without any bound on what it has in flight.
type naive struct {
	conn net.Conn
	oob  chan struct{} // closed when the reply with the id "oob" came
}

func newNaive(t *testing.T, v *vm) *naive {
	t.Helper()
	conn, err := v.retry(t)(t.Context(), v.second)
	if err != nil {
		t.Fatal(err)
	}
	n := &naive{conn: conn, oob: make(chan struct{})}
	r := bufio.NewReader(conn)
	io.WriteString(conn, `{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}`)
	r.ReadString('\n')
	r.ReadString('\n')
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if strings.Contains(line, `"id": "oob"`) {
				close(n.oob)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return n
}

func (n *naive) send(t *testing.T, times int, line string) {
	t.Helper()
	for range times {
		if _, err := fmt.Fprintln(n.conn, line); err != nil {
			t.Fatal(err)
		}
	}
}

// What was written for go-qemu works on our client, and its events don't block
// anything.
func TestQEMUAsMonitor(t *testing.T) {
	v := startQEMU(t, "-M", "pc")
	c := v.dial(t, v.path, nil)
	mon := qmp.AsMonitor(c, 5*time.Second)
	must(t, mon.Connect())

	for _, cmd := range []string{`{"execute":"query-qmp-schema"}`, `{"exec-oob":"query-yank"}`} {
		out, err := mon.Run([]byte(cmd))
		if err != nil || !json.Valid(out) || !strings.HasPrefix(string(out), `{"return":`) {
			t.Errorf("%s: %d bytes, %v", cmd, len(out), err)
		}
	}
	for _, cmd := range []string{`{"execute":"nonsense"}`, `{}`, `nonsense`} {
		if _, err := mon.Run([]byte(cmd)); err == nil {
			t.Errorf("%s was accepted", cmd)
		}
	}

	stalled, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := mon.Events(stalled); err != nil { // nobody reads them
		t.Fatal(err)
	}
	events, err := mon.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	domain, err := qemu.NewDomain(mon, "vm")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := domain.Status(); err != nil || s != qemu.StatusPreLaunch {
		t.Errorf("status %v, %v", s, err)
	}
	if _, err := domain.Run(goqemu.Command{Execute: "cont"}); err != nil {
		t.Error(err)
	}
	if e := <-events; e.Event != "RESUME" || e.Timestamp.Seconds == 0 {
		t.Errorf("got %+v", e)
	}
	domain.Close()
	for range events { // must end
	}
	if mon.Connect() == nil {
		t.Error("the connection must have ended")
	}
}
