package colo_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/blockrepl"
	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/internal/guest"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/netcompare/comparer"
	"github.com/coloctl/coloctl/state"
)

// pair is two nodes with a real guest, for tests with real QEMU.
type pair struct {
	t     *testing.T
	top   *lab.Topology
	dir   string
	mem   *arbiter.Memory
	nodes map[string]*colo.Node
	store map[string]*state.Store
	wire  *colo.Wire
	http  *http.Client
}

// tools finds QEMU and the guest's kernel. Where they must be there (in CI) their absence is a failure.
func tools(t *testing.T) (qemu, img, kernel, modules string) {
	t.Helper()
	for name, v := range map[string]*string{"COLOCTL_QEMU": &qemu, "COLOCTL_QEMU_IMG": &img, "COLOCTL_KERNEL": &kernel, "COLOCTL_MODULES": &modules} {
		if *v = os.Getenv(name); *v != "" {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not set: run the tests with make", name)
		}
		t.Skipf("%s is not set: run the tests with make", name)
	}
	return
}

func newPair(t *testing.T) *pair { return newPairWith(t, 1) }

func newPairWith(t *testing.T, links int) *pair {
	qemu, img, kernel, modules := tools(t)
	ctx := t.Context()
	p := &pair{t: t, mem: arbiter.NewMemory(), nodes: map[string]*colo.Node{}, store: map[string]*state.Store{}}
	var err error
	if p.dir, err = os.MkdirTemp("/tmp", "colo"); err != nil { // short: it holds unix sockets
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(p.dir) })
	if p.top, err = lab.NewTopology(links); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.top.Close() })
	cache, err := os.UserCacheDir()
	must(t, err)
	cache = filepath.Join(cache, "coloctl")
	init, err := guest.Init(ctx, cache)
	must(t, err)
	initrd, err := guest.Image(ctx, guest.ImageOptions{InitBinary: init, ModulesDir: modules, CacheDir: cache})
	must(t, err)
	for _, name := range []string{"n1", "n2"} {
		p.addNode(name, qemu, img)
	}
	must(t, guest.FormatDisk(ctx, filepath.Join(p.dir, "n1", "web.raw"), 64<<20))
	p.wire, err = colo.NewWire(p.nodes["n1"], p.nodes["n2"])
	must(t, err)
	must(t, p.nodes["n1"].Create(ctx, &colo.Spec{
		Name: "web", Memory: 256 << 20, CPU: "qemu64",
		Boot:  colo.Boot{Kernel: kernel, Initrd: initrd, Append: guest.CommandLine(guest.Network{Addresses: []string{"10.77.0.10/24"}})},
		Disks: []colo.DiskSpec{{Name: "vda", File: "web.raw", Size: 64 << 20}},
		NICs:  []colo.NICSpec{{Name: "net0", Bridge: "br0", MAC: "52:54:00:12:34:56"}},
	}))
	p.http = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return netns.Dial(ctx, p.top.Client.Netns(), network, addr)
		}}}
	return p
}

func (p *pair) addNode(name, qemu, img string) {
	dir := filepath.Join(p.dir, name)
	must(p.t, os.MkdirAll(dir, 0o700))
	st, err := state.Open(filepath.Join(dir, "state.db"), &state.Options{Node: name})
	must(p.t, err)
	p.t.Cleanup(func() { _ = st.Close() })
	level := slog.LevelInfo
	if os.Getenv("COLO_DEBUG") != "" {
		level = slog.LevelDebug
	}
	var links []colo.Link
	for _, l := range p.top.Links {
		links = append(links, colo.Link{Name: l.Name, Address: l.Addrs[name].Addr()})
	}
	command, err := comparer.Self()
	must(p.t, err)
	n, err := colo.NewNode(p.t.Context(), colo.NodeConfig{
		Name: name, RunDir: filepath.Join(dir, "run"), StorageDir: dir, Links: links,
		Ports: colo.PortRange{First: 9000, Last: 9100}, Netns: p.top.Nodes[name].Netns(), QEMU: []string{qemu}, QEMUImg: []string{img}, Accel: "tcg",
		Store: st, Arbiter: p.mem.View(name), HeartbeatKey: make([]byte, 32), Comparer: command, BitmapRotation: 500 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(p.t.Output(), &slog.HandlerOptions{Level: level})),
	})
	must(p.t, err)
	p.t.Cleanup(func() {
		if s, err := n.Status(context.Background(), "web"); err == nil && s.PID != 0 {
			if pr, err := os.FindProcess(s.PID); err == nil {
				_ = pr.Kill()
			}
		}
		_ = n.Close()
	})
	p.nodes[name], p.store[name] = n, st
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (p *pair) get(path string) string {
	p.t.Helper()
	resp, err := p.http.Get("http://10.77.0.10" + path)
	must(p.t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		p.t.Fatalf("%s: %s", path, resp.Status)
	}
	text, err := io.ReadAll(resp.Body)
	must(p.t, err)
	return string(text)
}

func (p *pair) await(node string, want colo.State) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	s, err := p.nodes[node].Wait(ctx, "web", func(s colo.Status) bool { return s.State == want })
	if err != nil {
		p.t.Fatalf("%s: waiting for %s: %v; it is %s: %s", node, want, err, s.State, s.Why)
	}
}

// TestLife takes a VM through a whole life: start, protect, loss of the secondary, bitmap resync, loss of the primary, roles exchanged on
// request and back. The guest must not notice: same boot, no write lost.
func TestLife(t *testing.T) {
	p := newPair(t)
	ctx := t.Context()
	n1, n2 := p.nodes["n1"], p.nodes["n2"]
	must(t, n1.Start(ctx, "web"))
	var id string
	for range 200 {
		if resp, err := p.http.Get("http://10.77.0.10/id"); err == nil {
			text, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			id = string(text)
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if id == "" {
		t.Fatal("the guest did not answer")
	}
	boot := bootOf(t, id)
	count := 0
	write := func() {
		t.Helper()
		count++
		want := fmt.Sprintf(`{"n":%d,"id":"w%d"}`, count, count)
		if got := strings.TrimSpace(p.get(fmt.Sprintf("/counter?id=w%d", count))); got != want {
			t.Fatalf("write %d: %s, want %s", count, got, want)
		}
		if now := bootOf(t, p.get("/id")); now != boot {
			t.Fatalf("the guest has booted again: %s, then %s", boot, now)
		}
	}
	write()
	protect := func(n *colo.Node, want blockrepl.Mode) {
		t.Helper()
		start := time.Now()
		must(t, n.Protect(ctx, "web", colo.ProtectOptions{}))
		s, err := n.Status(ctx, "web")
		must(t, err)
		if !s.Verdict.Protected {
			t.Fatalf("not protected: %s", s.Verdict.Reason)
		}
		t.Logf("protected in %s: resync %+v, checkpoints %+v", time.Since(start), *s.Resync, s.Checkpoints)
		if s.Resync.Mode != want || s.Resync.Why == "" {
			t.Errorf("a resync by %s (%s) instead of %s", s.Resync.Mode, s.Resync.Why, want)
		}
		write()
	}
	kill := func(n *colo.Node) {
		t.Helper()
		s, err := n.Status(ctx, "web")
		must(t, err)
		pr, err := os.FindProcess(s.PID)
		must(t, err)
		must(t, pr.Kill())
	}
	protect(n1, blockrepl.Full)
	t.Log("kill the secondary")
	// What both sides have flushed is not sent again. The guest's file system writes now and then by itself, so more than one try may be needed.
	for try := 0; ; try++ {
		time.Sleep(3 * time.Second) // for a few rotations of the bitmaps
		kill(n2)
		p.await("n1", colo.Solo)
		protect(n1, blockrepl.Bitmap)
		s, err := n1.Status(ctx, "web")
		must(t, err)
		if s.Resync.Copied == 0 {
			break
		}
		if try == 4 {
			t.Errorf("%d bytes were sent again that were durable on the peer", s.Resync.Copied)
			break
		}
	}
	write()
	must(t, n1.Unprotect(ctx, "web"))
	write()
	protect(n1, blockrepl.Bitmap)
	t.Log("kill the primary")
	kill(n1)
	p.await("n2", colo.Solo)
	write()
	protect(n2, blockrepl.Checksum)
	t.Log("switch over")
	must(t, n2.Switchover(ctx, "web"))
	p.await("n1", colo.Solo)
	write()
	protect(n1, blockrepl.Checksum)
	must(t, n1.Unprotect(ctx, "web"))
	write()
	protect(n1, blockrepl.Bitmap)
	must(t, n1.Stop(ctx, "web", colo.StopOptions{}))
}

func bootOf(t *testing.T, text string) string {
	t.Helper()
	var id struct {
		BootID string `json:"boot_id"`
	}
	if err := json.Unmarshal([]byte(text), &id); err != nil || id.BootID == "" {
		t.Fatalf("/id: %q: %v", text, err)
	}
	return id.BootID
}
