package comparer

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coloctl/coloctl/netcompare/compare"
)

// The test's binary is the comparer when it is told so: a Keeper needs a real process.
func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// qemu is QEMU's side of everything that a comparer connects to.
type qemu struct {
	t    *testing.T
	dir  string
	ln   map[string]net.Listener
	mu   sync.Mutex
	cond *sync.Cond
	conn map[string]net.Conn // the last one
	said []string            // commands
	run  string              // query-status
	colo string              // query-migrate
	outs []string            // what was released
	ago  time.Duration       // since what it tells of
	term time.Duration
}

func newQEMU(t *testing.T) *qemu {
	dir, err := os.MkdirTemp("", "comparer")
	must(t, err)
	q := &qemu{t: t, dir: dir, ln: map[string]net.Listener{}, conn: map[string]net.Conn{}, run: "running"}
	q.cond = sync.NewCond(&q.mu)
	var wg sync.WaitGroup
	for _, name := range []string{"qmp", "pri", "sec", "out"} {
		ln, err := net.Listen("unix", filepath.Join(dir, name))
		must(t, err)
		q.ln[name] = ln
		wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				q.mu.Lock()
				q.conn[name] = c
				q.cond.Broadcast()
				q.mu.Unlock()
				switch name {
				case "qmp":
					wg.Go(func() { q.serve(c) })
				case "out":
					wg.Go(func() { q.collect(c) })
				}
			}
		})
	}
	t.Cleanup(func() {
		for _, ln := range q.ln {
			ln.Close()
		}
		q.mu.Lock()
		for _, c := range q.conn {
			c.Close()
		}
		q.mu.Unlock()
		wg.Wait()
		os.RemoveAll(dir)
	})
	return q
}

func (q *qemu) config() Config {
	return Config{VM: "web", Term: q.term, QMP: filepath.Join(q.dir, "qmp"), Settings: Settings{Delay: 300 * time.Millisecond},
		NICs: []NIC{{Name: "net0", VNetHdr: true, Primary: filepath.Join(q.dir, "pri"), Secondary: filepath.Join(q.dir, "sec"), Out: filepath.Join(q.dir, "out"),
			Reader: Object{ID: "redin-net0", Type: "filter-redirector", Props: map[string]any{"indev": "co-net0"}}}}}
}

func (q *qemu) serve(c net.Conn) {
	fmt.Fprintln(c, `{"QMP": {"version": {}, "capabilities": []}}`)
	for in := bufio.NewScanner(c); in.Scan(); {
		var cmd struct {
			Execute, ID string
			Arguments   map[string]any
		}
		if json.Unmarshal(in.Bytes(), &cmd) != nil {
			return
		}
		q.mu.Lock()
		ret := "{}"
		switch cmd.Execute {
		case "query-status":
			ret = fmt.Sprintf(`{"status": %q, "running": true}`, q.run)
		case "query-migrate":
			ret = fmt.Sprintf(`{"status": %q}`, q.colo)
		}
		line := cmd.Execute
		if id, ok := cmd.Arguments["id"].(string); ok {
			line += " " + id
		}
		q.said = append(q.said, line)
		q.cond.Broadcast()
		if cmd.Execute == "object-del" {
			fmt.Fprintf(c, `{"id": %q, "error": {"class": "GenericError", "desc": "object not found"}}`+"\n", cmd.ID)
		} else {
			fmt.Fprintf(c, `{"id": %q, "return": %s}`+"\n", cmd.ID, ret)
		}
		q.mu.Unlock()
	}
}

func (q *qemu) collect(c net.Conn) {
	var head [8]byte
	for {
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		q.mu.Lock()
		q.outs = append(q.outs, string(b[12+14+20+8:]))
		q.cond.Broadcast()
		q.mu.Unlock()
	}
}

// until waits for what is told by other goroutines.
func (q *qemu) until(what string, f func() bool) {
	q.t.Helper()
	late := time.AfterFunc(10*time.Second, func() { q.cond.Broadcast() })
	defer late.Stop()
	end := time.Now().Add(10 * time.Second)
	q.mu.Lock()
	defer q.mu.Unlock()
	for !f() {
		if time.Now().After(end) {
			q.t.Fatalf("%s: QEMU was told %q, %q left", what, q.said, q.outs)
		}
		q.cond.Wait()
	}
}

func (q *qemu) event(name, data string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch name {
	case "STOP":
		q.run = "colo"
	case "RESUME":
		q.run = "running"
	case "MIGRATION":
		q.colo = "colo"
	}
	fmt.Fprintf(q.conn["qmp"], `{"event": %q, "data": %s, "timestamp": {"seconds": %d, "microseconds": 2}}`+"\n", name, data, time.Now().Add(-q.ago).Unix())
}

func (q *qemu) checkpoint() {
	q.event("STOP", "{}")
	q.until("the question after STOP", func() bool { return q.said[len(q.said)-1] == "query-status" })
	q.event("RESUME", "{}")
}

// says sends datagrams of a copy.
func (q *qemu) says(copy string, bodies ...string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, body := range bodies {
		b := make([]byte, 8+12+14+20+8, 128)
		frame := b[20:]
		frame[12], frame[13] = 8, 0
		ip := frame[14:]
		ip[0], ip[9] = 0x45, 17
		binary.BigEndian.PutUint16(ip[2:], uint16(28+len(body)))
		src, dst := netip.MustParseAddr("10.0.0.1").As4(), netip.MustParseAddr("10.0.0.2").As4()
		copy4(ip[12:], src)
		copy4(ip[16:], dst)
		b = append(b, body...)
		binary.BigEndian.PutUint32(b, uint32(len(b)-8))
		binary.BigEndian.PutUint32(b[4:], 12)
		if _, err := q.conn[copy].Write(b); err != nil {
			q.t.Error(err)
		}
	}
}

func copy4(to []byte, a [4]byte) { copy(to, a[:]) }

func (q *qemu) left(want ...string) {
	q.t.Helper()
	q.until("what leaves: "+strings.Join(want, " "), func() bool { return len(q.outs) >= len(want) })
	q.mu.Lock()
	defer q.mu.Unlock()
	if strings.Join(q.outs, " ") != strings.Join(want, " ") {
		q.t.Errorf("left %q, want %q", q.outs, want)
	}
	q.outs = nil
}

func (q *qemu) asked(n int) {
	q.t.Helper()
	q.until(fmt.Sprintf("%d requests for a checkpoint", n), func() bool {
		got := 0
		for _, s := range q.said {
			if s == "migrate-set-parameters" {
				got++
			}
		}
		return got >= n
	})
}

// starts runs a comparer in this process.
func (q *qemu) starts() (end func() error) {
	q.t.Helper()
	must(q.t, writeConfig(q.dir, q.config()))
	ctx, cancel := context.WithCancel(q.t.Context())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, q.dir, slog.New(slog.DiscardHandler)) }()
	return func() error { cancel(); return <-done }
}

func (q *qemu) status(ok func(Status) bool) Status {
	q.t.Helper()
	c := NewClient(q.dir)
	defer c.Close()
	for end := time.Now().Add(10 * time.Second); ; {
		s, err := c.Status(q.t.Context())
		if err == nil && ok(s) {
			return s
		}
		if time.Now().After(end) {
			q.t.Fatalf("status %+v, %v", s, err)
		}
		time.Sleep(time.Millisecond) // nothing tells of it
	}
}

func TestLife(t *testing.T) {
	q := newQEMU(t)
	end := q.starts()
	q.status(func(s Status) bool { return !s.InColo && !s.Live })
	q.event("STOP", "{}")
	q.event("MIGRATION", `{"status": "colo"}`)
	q.until("the question after STOP", func() bool { return q.said[len(q.said)-1] == "query-status" })
	q.event("RESUME", "{}")
	q.status(func(s Status) bool { return s.Live })
	q.says("pri", "a", "b", "c")
	q.says("sec", "a", "b")
	q.left("a", "b")
	q.asked(1) // c is late
	q.checkpoint()
	q.left("c")
	c := NewClient(q.dir)
	defer c.Close()
	set := q.config().Settings
	set.Timeout = 5 * time.Second
	s, err := c.Set(t.Context(), set)
	must(t, err)
	if s.Settings.Timeout != set.Timeout || s.Engine.Checkpoints != 2 || s.Engine.Released != 3 {
		t.Errorf("%+v", s)
	}
	if _, err := c.Set(t.Context(), Settings{}); err == nil {
		t.Error("settings without a delay are taken")
	}
	if _, err := c.Checkpoint(t.Context()); err != nil {
		t.Error(err)
	}
	q.asked(2)
	if m := metrics(s); !strings.Contains(m, `coloctl_compare_asked_total{vm="web",reason="late"} 1`) {
		t.Error(m)
	}
	q.event("COLO_EXIT", `{"mode": "primary", "reason": "error"}`)
	q.status(func(s Status) bool { return s.Held != "" && !s.Live })
	q.says("pri", "d")
	q.says("sec", "d")
	q.event("RESUME", "{}")
	q.status(func(s Status) bool { return s.Engine.Dropped == 1 })
	q.left()
	if err := end(); err != nil {
		t.Error(err)
	}
}

// A guest that a person stops and lets go on has had no checkpoint.
func TestPausedByHand(t *testing.T) {
	q := newQEMU(t)
	q.colo = "colo"
	end := q.starts()
	defer func() { must(t, end()) }()
	q.asked(1) // it began in the middle
	q.checkpoint()
	q.status(func(s Status) bool { return s.Live })
	q.says("pri", "a")
	q.asked(2)
	q.mu.Lock()
	n := len(q.said)
	q.mu.Unlock()
	q.event("STOP", "{}")
	q.mu.Lock()
	q.run = "paused"
	q.mu.Unlock()
	q.until("the question after STOP", func() bool { return len(q.said) > n && q.said[len(q.said)-1] == "query-status" })
	q.status(func(s Status) bool { return s.Engine.Mode == "halted" })
	q.event("RESUME", "{}")
	q.status(func(s Status) bool { return s.Engine.Mode == "live" })
	q.left()
	q.says("sec", "a")
	q.left("a")
}

// TestKilled kills the process again and again while both copies speak: whatever leaves was said by both, or before a
// checkpoint, in whole frames.
func TestKilled(t *testing.T) {
	q := newQEMU(t)
	q.colo = "colo"
	self, err := Self()
	must(t, err)
	k := &Keeper{Dir: q.dir, Command: self, Log: slog.New(slog.DiscardHandler)}
	must(t, k.Start(t.Context(), q.config()))
	for i := range 5 {
		q.until("a request for a checkpoint", func() bool { return q.said[len(q.said)-1] == "migrate-set-parameters" })
		q.says("pri", fmt.Sprint("held", i))
		q.status(func(s Status) bool { return s.Engine.Waiting == 1 })
		q.checkpoint()
		q.left(fmt.Sprint("held", i))
		q.says("pri", fmt.Sprint("both", i), fmt.Sprint("lost", i))
		q.says("sec", fmt.Sprint("both", i))
		q.left(fmt.Sprint("both", i))
		pid := q.status(func(Status) bool { return true }).PID
		must(t, syscall.Kill(pid, map[bool]syscall.Signal{true: syscall.SIGKILL, false: syscall.SIGSTOP}[i != 3]))
		q.status(func(s Status) bool { return s.PID != pid })
	}
	if n := k.Starts(); n != 6 {
		t.Errorf("started %d times", n)
	}
	// Another Keeper takes it over.
	pid := q.status(func(Status) bool { return true }).PID
	k.Leave()
	k2 := &Keeper{Dir: q.dir, Command: k.Command, Log: k.Log}
	if !k2.Adopt() || q.status(func(Status) bool { return true }).PID != pid {
		t.Error("it was not taken over")
	}
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	q.status(func(s Status) bool { return s.PID != pid })
	must(t, k2.Stop(t.Context()))
	must(t, k2.Stop(t.Context()))
	if k2.pid() != 0 || k2.Adopt() {
		t.Error("it is still there")
	}
	if err := Run(t.Context(), q.dir, k.Log); err == nil {
		t.Error("it runs without a configuration")
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 0, 0, 0, 0, 1, 2}, true)
	f.Add([]byte{0, 0, 0, 2, 1, 2}, false)
	f.Fuzz(func(t *testing.T, b []byte, vnet bool) {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK, 0)
		must(t, err)
		defer syscall.Close(fds[0])
		_, _ = syscall.Write(fds[1], b)
		syscall.Close(fds[1])
		r := &reader{fd: fds[0], vnet: vnet, pool: new(compare.Pool)}
		total := 0
		for {
			_, err := r.read(func(fr compare.Frame) {
				total += len(fr.All)
				if fr.Head > len(fr.All) {
					t.Error("a header beyond the end")
				}
			})
			if err != nil {
				break
			}
		}
		if total > len(b) {
			t.Errorf("%d of %d bytes", total, len(b))
		}
	})
}

// TestLease: a comparer that doesn't know whether the secondary is still one lets nothing out, not even what both copies say.
func TestLease(t *testing.T) {
	q := newQEMU(t)
	q.term, q.colo = time.Hour, "colo"
	end := q.starts()
	defer func() { must(t, end()) }()
	q.asked(1) // it began in the middle
	checkpoints := uint64(0)
	checkpoint := func(ago time.Duration) {
		t.Helper()
		q.ago = ago
		q.checkpoint()
		checkpoints++
		q.status(func(s Status) bool { return s.Live && s.Engine.Checkpoints == checkpoints })
	}
	checkpoint(0)
	say := func(body string) {
		q.says("pri", body)
		q.says("sec", body)
	}
	say("a")
	q.left("a")

	checkpoint(2 * time.Hour)
	say("b")
	q.status(func(s Status) bool { return s.Lapses == 1 })
	q.asked(2)
	q.left()
	lease, err := OpenLease(q.dir)
	must(t, err)
	defer func() { must(t, lease.Close()) }()
	lease.Until(time.Now().Add(time.Hour))
	q.left("b") // the daemon knows better

	lease.Until(time.Now().Add(-time.Hour))
	say("c")
	q.status(func(s Status) bool { return s.Lapses == 2 })
	q.left()
	checkpoint(0)
	q.left("c")

	checkpoint(2 * time.Hour)
	say("d")
	q.status(func(s Status) bool { return s.Lapses == 3 })
	q.event("COLO_EXIT", `{"mode": "primary", "reason": "error"}`)
	q.status(func(s Status) bool { return s.Held != "" && s.OutLost == 1 })
	q.left()
}
