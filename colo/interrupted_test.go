package colo_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/qemutest"
	"github.com/coloctl/coloctl/netcompare/comparer"
	"github.com/coloctl/coloctl/qmp"
	"github.com/coloctl/coloctl/state"
)

var (
	interruptSeeds = flag.Int("interrupted.seeds", 2, "how many seeds TestResyncInterrupted plays")
	interruptFirst = flag.Uint64("interrupted.first", 0, "the first of them; 0 is one of old, then random ones")
)

// small is two nodes with a VM without guest and NICs, which idles in its firmware. What a guest would write is written by qemu-io.
type small struct {
	tools qemutest.Tools
	t     *testing.T
	rnd   *rand.Rand
	wrnd  *rand.Rand // of write, which runs beside the test
	dir   string
	top   *lab.Topology
	mem   *arbiter.Memory
	nodes map[string]*colo.Node
	store map[string]*state.Store
	wire  *colo.Wire

	mu      sync.Mutex
	pattern map[int64]int // what was written and flushed, by offset
	events  map[string]int
}

const (
	smallDisk  = 48 << 20
	smallBlock = 4096
)

func newSmall(t *testing.T, seed uint64) *small {
	t.Helper()
	s := startSmall(t, seed)
	for name := range s.nodes {
		s.fill(name)
	}
	s.create(colo.DiskSpec{Name: "vda", File: "a.raw", Size: smallDisk}, colo.DiskSpec{Name: "vdb", File: "b.qcow2", Format: "qcow2", Size: smallDisk / 2})
	return s
}

// create makes the VM on n1.
func (s *small) create(disks ...colo.DiskSpec) {
	s.t.Helper()
	must(s.t, s.nodes["n1"].Create(s.t.Context(), &colo.Spec{
		Name: "web", Memory: 32 << 20, Disks: disks,
		Protection: colo.ProtectionSpec{CheckpointDelay: colo.Duration(5 * time.Minute), SyncSpeed: 24 << 20},
	}))
}

// startSmall starts the nodes.
func startSmall(t *testing.T, seed uint64) *small {
	t.Helper()
	s := &small{t: t, tools: qemutest.Find(t), rnd: rand.New(rand.NewPCG(seed, 5)), wrnd: rand.New(rand.NewPCG(seed, 6)), mem: arbiter.NewMemory(), nodes: map[string]*colo.Node{}, store: map[string]*state.Store{},
		pattern: map[int64]int{}, events: map[string]int{}}
	var err error
	s.dir, err = os.MkdirTemp("/tmp", "colo")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(s.dir) })
	s.top, err = lab.NewTopology(1)
	must(t, err)
	t.Cleanup(func() { _ = s.top.Close() })
	for _, name := range []string{"n1", "n2"} {
		must(t, os.MkdirAll(filepath.Join(s.dir, name), 0o700))
		s.open(name)
		t.Cleanup(func() { s.killQEMU(name); s.close(name) })
	}
	s.wire, err = colo.NewWire(s.nodes["n1"], s.nodes["n2"])
	must(t, err)
	return s
}

// fill gives a node half-way equal disks, so that comparing and copying both take their time.
func (s *small) fill(name string) {
	s.t.Helper()
	data := make([]byte, smallDisk)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(data)
	other := rand.NewChaCha8([32]byte{name[1]})
	for at := 0; at < smallDisk; at += 3 << 20 {
		_, _ = other.Read(data[at : at+1<<20])
	}
	must(s.t, os.WriteFile(filepath.Join(s.dir, name, "a.raw"), data, 0o600))
	out, err := exec.CommandContext(s.t.Context(), s.tools.Img, "create", "-q", "-f", "qcow2", filepath.Join(s.dir, name, "b.qcow2"), fmt.Sprint(smallDisk/2)).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
}

func (s *small) open(name string) {
	s.t.Helper()
	st, err := state.Open(filepath.Join(s.dir, name, "state.db"), &state.Options{Node: name})
	must(s.t, err)
	out := io.Discard
	if os.Getenv("COLO_DEBUG") != "" {
		out = s.t.Output()
	}
	command, err := comparer.Self()
	must(s.t, err)
	n, err := colo.NewNode(s.t.Context(), colo.NodeConfig{
		Name: name, RunDir: filepath.Join(s.dir, name, "run"), StorageDir: filepath.Join(s.dir, name), OverlayDir: filepath.Join(s.dir, name, "overlays"),
		Links: []colo.Link{{Name: "link0", Address: s.top.Links[0].Addrs[name].Addr()}}, Ports: colo.PortRange{First: 9000, Last: 9100},
		Netns: s.top.Nodes[name].Netns(), QEMU: []string{s.tools.QEMU}, QEMUImg: []string{s.tools.Img}, Accel: "tcg",
		Store: st, Arbiter: s.mem.View(name), HeartbeatKey: make([]byte, 32), Comparer: command, BitmapRotation: -1, HangTimeout: 10 * time.Second, HeartbeatTimeout: 3 * time.Second,
		Log: slog.New(slog.NewTextHandler(out, nil)),
	})
	must(s.t, err)
	s.nodes[name], s.store[name] = n, st
}

// close ends a node's daemon; its QEMU runs on.
func (s *small) close(name string) {
	must(s.t, s.nodes[name].Close())
	must(s.t, s.store[name].Close())
}

func (s *small) status(name string) colo.Status {
	st, err := s.nodes[name].Status(context.Background(), "web")
	if err != nil {
		return colo.Status{State: "unknown"}
	}
	return st
}

func (s *small) killQEMU(name string) {
	if st := s.status(name); st.PID > 0 {
		if p, err := os.FindProcess(st.PID); err == nil {
			_ = p.Kill()
		}
	}
}

func (s *small) await(name string, what string, ok func(colo.Status) bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 40*time.Second)
	defer cancel()
	if st, err := s.nodes[name].Wait(ctx, "web", ok); err != nil && !errors.Is(err, colo.ErrNoVM) {
		s.t.Fatalf("%s: waiting for %s: %v; it is %s: %s; %s", name, what, err, st.State, st.Why, st.LastError)
	}
}

// alone waits until the VM runs on n1 alone, whatever has happened, and starts it there when it doesn't run.
func (s *small) alone() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 40*time.Second)
	defer cancel()
	for {
		st := s.status("n1")
		var err error
		switch st.State {
		case colo.Solo:
			s.await("n2", "the end of its copy", func(st colo.Status) bool { return st.State != colo.Secondary })
			return
		case colo.Protected:
			err = s.nodes["n1"].Unprotect(ctx, "web")
		case colo.Stopped, colo.Outdated, colo.Failed: // or its daemon has just started and doesn't know better yet
			err = s.nodes["n1"].Start(ctx, "web")
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			s.t.Fatalf("n1 is %s: %s; %s; %v", st.State, st.Why, st.LastError, err)
		}
	}
}

// write makes the guest of n1 write and flush a few blocks. What is not answered counts as neither written nor lost.
func (s *small) write(ctx context.Context) {
	c, err := qmp.Dial(ctx, filepath.Join(s.dir, "n1", "run", "web", "monitor"), nil)
	if err != nil {
		return
	}
	defer c.Close()
	for range 4 {
		s.mu.Lock()
		at, p := smallBlock*s.wrnd.Int64N(smallDisk/smallBlock), 1+s.wrnd.IntN(255)
		delete(s.pattern, at)
		s.mu.Unlock()
		out, err := c.HumanMonitorCommand(ctx, fmt.Sprintf("qemu-io -d /machine/peripheral/blk-vda/virtio-backend \"write -P %d %d %d\"", p, at, smallBlock))
		if err == nil && !strings.Contains(out, "rror") {
			out, err = c.HumanMonitorCommand(ctx, "qemu-io -d /machine/peripheral/blk-vda/virtio-backend flush")
			if err == nil && !strings.Contains(out, "rror") {
				s.mu.Lock()
				s.pattern[at] = p
				s.mu.Unlock()
			}
		}
	}
}

// hit kills something at a random moment of a resync.
func (s *small) hit() {
	what := []string{"standby", "standby", "source", "daemon n1", "daemon n2"}[s.rnd.IntN(5)]
	s.events[what]++
	switch what {
	case "standby":
		s.killQEMU("n2")
	case "source":
		s.killQEMU("n1")
	default:
		name := strings.Fields(what)[1]
		s.close(name)
		s.open(name)
		must(s.t, s.wire.Replace(s.nodes[name]))
	}
}

// bring protects the VM, interrupted or not.
func (s *small) bring(interrupt bool) {
	s.t.Helper()
	ctx := s.t.Context()
	s.alone()
	done := make(chan error, 1)
	n := s.nodes["n1"]
	go func() { done <- n.Protect(ctx, "web", colo.ProtectOptions{}) }()
	wctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for wctx.Err() == nil && s.status("n1").State == colo.Syncing || s.status("n1").State == colo.Solo && wctx.Err() == nil {
			s.write(wctx)
			time.Sleep(20 * time.Millisecond)
		}
	})
	stop := func() { cancel(); wg.Wait() }
	defer stop()
	if !interrupt {
		for {
			select {
			case err := <-done:
				if err != nil {
					s.t.Fatalf("protect: %v", err)
				}
				return
			case <-time.After(50 * time.Millisecond):
				if s.status("n1").State == colo.Attaching {
					stop() // qemu-io writes also while the guest stands still, which a guest can't
				}
			}
		}
	}
	select {
	case <-done:
		s.events["in vain"]++
	case <-time.After(time.Duration(s.rnd.Int64N(int64(3500 * time.Millisecond)))):
		stop()
		s.hit()
		<-done
	}
}

// TestResyncInterrupted: processes are killed at random moments of resyncs while the guest writes. Whenever the VM is protected in the end, both
// halves are equal, and nothing that was flushed is lost.
func TestResyncInterrupted(t *testing.T) {
	first := *interruptFirst
	if first == 0 {
		first = rand.Uint64()
	}
	for i := range *interruptSeeds {
		seed := first + uint64(i)
		if *interruptFirst == 0 && i == 0 {
			seed = 5806882936349973526 // the source's daemon is killed while a disk is copied
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := newSmall(t, seed)
			must(t, s.nodes["n1"].Start(t.Context(), "web"))
			for range 4 {
				s.bring(true)
			}
			s.bring(false)
			st := s.status("n1")
			if !st.Verdict.Protected {
				t.Fatalf("not protected: %s", st.Verdict.Reason)
			}
			t.Logf("%v; at last: %s; %s", s.events, st.Resync.Why, st.Resync)
			s.same(t.Context(), true) // however long the machine took until here
		})
	}
}

// same compares the halves, and what was flushed with what is there.
func (s *small) same(ctx context.Context, written bool) {
	s.t.Helper()
	for _, f := range [][2]string{{"raw", "a.raw"}, {"qcow2", "b.qcow2"}} {
		out, err := exec.CommandContext(ctx, s.tools.Img, "compare", "-U", "-f", f[0], "-F", f[0],
			filepath.Join(s.dir, "n1", f[1]), filepath.Join(s.dir, "n2", f[1])).CombinedOutput()
		if err != nil {
			s.t.Errorf("the VM is protected, and its halves differ, or can't be compared: %s (%v)", out, err)
		}
	}
	data, err := os.ReadFile(filepath.Join(s.dir, "n2", "a.raw"))
	must(s.t, err)
	for at, p := range s.pattern {
		for _, b := range data[at : at+smallBlock] {
			if int(b) != p {
				s.t.Errorf("what was flushed at %d is lost: %d instead of %d", at, b, p)
				break
			}
		}
	}
	if written && len(s.pattern) == 0 {
		s.t.Error("nothing was written")
	}
}
