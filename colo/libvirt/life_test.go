package libvirt_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/libvirt"
	"github.com/coloctl/coloctl/internal/guest"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/libvirtd"
	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/netcompare/comparer"
	"github.com/coloctl/coloctl/state"
)

// need skips a test for what this machine lacks. In CI all of it must be there.
func need(t *testing.T, err error) {
	t.Helper()
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
}

func tool(t *testing.T, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		need(t, fmt.Errorf("%s is not set: run the tests with make", name))
	}
	return v
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shortDir is a folder for unix sockets.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lv")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// startDaemon starts a libvirtd for this test.
func startDaemon(t *testing.T, o libvirtd.Options) *libvirtd.Daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		need(t, errors.New("a libvirtd in a mount namespace needs root"))
	}
	cache, err := os.UserCacheDir()
	must(t, err)
	o.Cache = filepath.Join(cache, "coloctl", "libvirt")
	d, err := libvirtd.Start(t.Context(), o)
	if errors.Is(err, libvirtd.ErrNotInstalled) {
		need(t, err)
	}
	must(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// pair is two nodes whose QEMUs are libvirt's domains.
type pair struct {
	t     *testing.T
	top   *lab.Topology
	dir   string
	qemu  string
	img   string
	mem   *arbiter.Memory
	virt  map[string]*libvirtd.Daemon
	nodes map[string]*colo.Node
	store map[string]*state.Store
	http  *http.Client
}

// public copies files to where every user may read them: this user's cache may be closed to others.
func public(t *testing.T, dir, name, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	must(t, err)
	path := filepath.Join(dir, name)
	must(t, os.WriteFile(path, text, 0o644))
	return path
}

// publicQEMU is the provisioned QEMU for every user. It is started by a script that says where the tree with its files is.
func publicQEMU(t *testing.T, dir string) string {
	t.Helper()
	script, err := os.ReadFile(tool(t, "COLOCTL_QEMU"))
	must(t, err)
	m := regexp.MustCompile(`(?m)^T='(.*)'$`).FindSubmatch(script)
	if m == nil {
		return os.Getenv("COLOCTL_QEMU") // one that is installed
	}
	tree := filepath.Join(dir, "qemu")
	if out, err := exec.Command("cp", "-al", string(m[1]), tree).CombinedOutput(); err != nil {
		if out2, err := exec.Command("cp", "-a", string(m[1]), tree).CombinedOutput(); err != nil {
			t.Fatalf("%s%s%v", out, out2, err)
		}
	}
	path := filepath.Join(dir, "qemu-system-x86_64")
	must(t, os.WriteFile(path, bytes.ReplaceAll(script, m[1], []byte(tree)), 0o755))
	return path
}

func newPair(t *testing.T) *pair {
	ctx := t.Context()
	p := &pair{t: t, img: tool(t, "COLOCTL_QEMU_IMG"), mem: arbiter.NewMemory(), dir: shortDir(t),
		virt: map[string]*libvirtd.Daemon{}, nodes: map[string]*colo.Node{}, store: map[string]*state.Store{}}
	must(t, os.Chmod(p.dir, 0o711))
	p.qemu = publicQEMU(t, p.dir)
	kernel, modules := public(t, p.dir, "vmlinuz", tool(t, "COLOCTL_KERNEL")), tool(t, "COLOCTL_MODULES")
	var err error
	p.top, err = lab.NewTopology(1)
	must(t, err)
	t.Cleanup(func() { _ = p.top.Close() })
	cache, err := os.UserCacheDir()
	must(t, err)
	cache = filepath.Join(cache, "coloctl")
	init, err := guest.Init(ctx, cache)
	must(t, err)
	initrd, err := guest.Image(ctx, guest.ImageOptions{InitBinary: init, ModulesDir: modules, CacheDir: cache})
	must(t, err)
	initrd = public(t, p.dir, "initrd", initrd)
	for i, name := range []string{"n1", "n2"} {
		p.virt[name] = startDaemon(t, libvirtd.Options{Dir: filepath.Join(p.dir, name, "lv"), Netns: p.top.Nodes[name].Netns(), User: "libvirt-qemu",
			HostUUID: fmt.Sprintf("00000000-0000-4000-8000-00000000000%d", i+1)})
		p.open(name)
	}
	_, err = colo.NewWire(p.nodes["n1"], p.nodes["n2"])
	must(t, err)
	must(t, guest.FormatDisk(ctx, filepath.Join(p.dir, "n1", "web.raw"), 64<<20))
	must(t, p.nodes["n1"].Create(ctx, &colo.Spec{
		Name: "web", Memory: 256 << 20, CPU: "qemu64",
		Boot:  colo.Boot{Kernel: kernel, Initrd: initrd, Append: guest.CommandLine(guest.Network{Addresses: []string{"10.77.0.10/24"}})},
		Disks: []colo.DiskSpec{{Name: "vda", File: "web.raw", Size: 64 << 20}},
		NICs:  []colo.NICSpec{{Name: "net0", Bridge: "br0", MAC: "52:54:00:12:34:56"}},
	}))
	p.http = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return netns.Dial(ctx, p.top.Client.Netns(), network, addr)
		}}}
	return p
}

// open opens a node, also one that was closed.
func (p *pair) open(name string) {
	p.t.Helper()
	dir := filepath.Join(p.dir, name)
	st, err := state.Open(filepath.Join(dir, "state.db"), &state.Options{Node: name})
	must(p.t, err)
	p.t.Cleanup(func() { _ = st.Close() })
	d := p.virt[name]
	must(p.t, os.MkdirAll(filepath.Join(dir, "run"), 0o755))
	command, err := comparer.Self()
	must(p.t, err)
	n, err := colo.NewNode(p.t.Context(), colo.NodeConfig{
		Name: name, RunDir: filepath.Join(dir, "run"), StorageDir: dir, Links: []colo.Link{{Name: "link0", Address: p.top.Links[0].Addrs[name].Addr()}},
		Ports: colo.PortRange{First: 9000, Last: 9100}, Netns: p.top.Nodes[name].Netns(), QEMU: []string{p.qemu}, QEMUImg: []string{p.img}, Accel: "tcg",
		Store: st, Arbiter: p.mem.View(name), HeartbeatKey: make([]byte, 32), Comparer: command,
		Starter: libvirt.Starter{Address: libvirt.Address{Socket: d.Socket()}, LogDir: d.LogDir(), Netns: p.top.Nodes[name].Netns()},
		Log:     slog.New(slog.NewTextHandler(p.t.Output(), nil)),
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

func (p *pair) status(node string) colo.Status {
	p.t.Helper()
	s, err := p.nodes[node].Status(p.t.Context(), "web")
	must(p.t, err)
	return s
}

func (p *pair) await(node, what string, ok func(colo.Status) bool) colo.Status {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	s, err := p.nodes[node].Wait(ctx, "web", ok)
	if err != nil {
		p.t.Fatalf("%s: waiting for %s: %v; it is %s: %s", node, what, err, s.State, s.Why)
	}
	return s
}

func (p *pair) awaitState(node string, want colo.State) {
	p.t.Helper()
	p.await(node, string(want), func(s colo.Status) bool { return s.State == want })
}

// agree compares what virsh lists on both nodes with what the nodes say.
func (p *pair) agree(when string) {
	p.t.Helper()
	for name, d := range p.virt {
		out, err := d.Virsh(p.t.Context(), "list", "--all", "--name")
		must(p.t, err)
		s, err := p.nodes[name].Status(p.t.Context(), "web")
		if err != nil && !errors.Is(err, colo.ErrNoVM) {
			p.t.Fatal(err)
		}
		if has := strings.TrimSpace(out) == "web"; has != (s.PID != 0) {
			p.t.Errorf("%s: %s: virsh lists %q, the node is %s with process %d", when, name, strings.TrimSpace(out), s.State, s.PID)
		}
	}
}

func (p *pair) virsh(node string, args ...string) string {
	p.t.Helper()
	out, err := p.virt[node].Virsh(p.t.Context(), args...)
	must(p.t, err)
	return strings.TrimSpace(out)
}

// boot waits for the guest and returns the function that writes to it once more and checks that it is the same guest.
func (p *pair) boot() (write func()) {
	p.t.Helper()
	get := func(path string) string {
		p.t.Helper()
		resp, err := p.http.Get("http://10.77.0.10" + path)
		must(p.t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		must(p.t, err)
		return strings.TrimSpace(string(text))
	}
	bootID := func(text string) string {
		p.t.Helper()
		var id struct {
			BootID string `json:"boot_id"`
		}
		must(p.t, json.Unmarshal([]byte(text), &id))
		return id.BootID
	}
	var boot string
	for range 200 {
		if resp, err := p.http.Get("http://10.77.0.10/id"); err == nil {
			resp.Body.Close()
			boot = bootID(get("/id"))
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if boot == "" {
		p.t.Fatal("the guest did not answer")
	}
	count := 0
	return func() {
		p.t.Helper()
		count++
		if got, want := get(fmt.Sprintf("/counter?id=w%d", count)), fmt.Sprintf(`{"n":%d,"id":"w%d"}`, count, count); got != want {
			p.t.Fatalf("write %d: %s, want %s", count, got, want)
		}
		if now := bootID(get("/id")); now != boot {
			p.t.Fatalf("the guest has booted again: %s, then %s", boot, now)
		}
	}
}

func (p *pair) protect(node string) {
	p.t.Helper()
	must(p.t, p.nodes[node].Protect(p.t.Context(), "web", colo.ProtectOptions{}))
	if s := p.status(node); !s.Verdict.Protected {
		p.t.Fatalf("not protected: %s", s.Verdict.Reason)
	}
}

// TestLife takes a VM whose copies are libvirt's domains, run by a user without privileges as Debian's libvirt does, through a whole life. At each step both virsh and the nodes must see the same, and the guest
// must not notice.
func TestLife(t *testing.T) {
	p := newPair(t)
	ctx := t.Context()
	must(t, p.nodes["n1"].Start(ctx, "web"))
	p.agree("started")
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.status("n1").PID)); err != nil || !strings.Contains(string(text), "\nUid:\t64055\t64055") {
		t.Errorf("QEMU does not run as libvirt-qemu: %v: %s", err, text)
	}
	if got := p.virsh("n1", "domstate", "web"); got != "running" {
		t.Errorf("virsh says %q of a running guest", got)
	}
	write := p.boot()
	write()
	p.protect("n1")
	p.agree("protected")
	write()

	t.Log("libvirtd is restarted on both nodes")
	before := map[string]colo.Status{"n1": p.status("n1"), "n2": p.status("n2")}
	for name := range p.virt {
		must(t, p.virt[name].Stop())
	}
	write()
	for name := range p.virt {
		must(t, p.virt[name].Run(ctx))
	}
	p.agree("libvirtd restarted")
	write()
	for name, was := range before {
		now := p.status(name)
		if now.PID != was.PID || now.State != was.State || now.Generation != was.Generation || now.Checkpoints.Count <= was.Checkpoints.Count {
			t.Errorf("%s: libvirtd's restart did something: %+v, then %+v", name, was, now)
		}
	}

	t.Log("the primary is destroyed through libvirt")
	p.virsh("n1", "destroy", "web")
	p.awaitState("n2", colo.Solo)
	write()
	p.awaitState("n1", colo.Outdated)
	p.agree("failed over")
	p.protect("n2")
	p.agree("protected again")

	t.Log("the secondary is killed while libvirtd is away")
	must(t, p.virt["n1"].Stop())
	pr, err := os.FindProcess(p.status("n1").PID)
	must(t, err)
	must(t, pr.Kill())
	p.awaitState("n2", colo.Solo)
	write()
	if err := p.nodes["n2"].Protect(ctx, "web", colo.ProtectOptions{}); err == nil || !strings.Contains(err.Error(), "libvirtd can't be reached") {
		t.Errorf("protect without the peer's libvirtd: %v", err)
	}
	write()
	must(t, p.virt["n1"].Run(ctx))
	p.protect("n2")
	p.agree("protected after libvirtd came back")
	write()
	must(t, p.nodes["n2"].Switchover(ctx, "web"))
	p.awaitState("n1", colo.Solo)
	write()
	p.agree("switched over")

	t.Log("a node's daemon is restarted under protection")
	p.protect("n1")
	pid := p.status("n1").PID
	must(t, p.nodes["n1"].Close())
	must(t, p.store["n1"].Close())
	p.open("n1")
	// Only one of the two has lost its partner.
	if _, err := colo.NewWire(p.nodes["n1"], p.nodes["n2"]); err == nil {
		t.Error("n2 took a second partner")
	}
	p.await("n1", "protected", func(s colo.Status) bool { return s.State == colo.Protected })
	if now := p.status("n1").PID; now != pid {
		t.Errorf("process %d was %d before the restart", now, pid)
	}
	write()

	t.Log("the guest is shut down through libvirt")
	p.virsh("n1", "shutdown", "web")
	p.awaitState("n1", colo.Stopped)
	p.awaitState("n2", colo.Outdated)
	p.agree("stopped")
	if s := p.status("n1"); s.Want != colo.WantStopped {
		t.Errorf("after the guest's shutdown the VM is wanted %q", s.Want)
	}
}
