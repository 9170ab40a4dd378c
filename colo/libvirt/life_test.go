package libvirt_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/colo/libvirt"
	"github.com/coloctl/coloctl/internal/libvirtd"
	"github.com/coloctl/coloctl/internal/pairtest"
	"github.com/coloctl/coloctl/internal/qemutest"
)

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
		qemutest.Need(t, errors.New("a libvirtd in a mount namespace needs root"))
	}
	cache, err := os.UserCacheDir()
	must(t, err)
	o.Cache = filepath.Join(cache, "coloctl", "libvirt")
	d, err := libvirtd.Start(t.Context(), o)
	if errors.Is(err, libvirtd.ErrNotInstalled) {
		qemutest.Need(t, err)
	}
	must(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// pair is two nodes whose QEMUs are libvirt's domains.
type pair struct {
	*pairtest.Pair
	t    *testing.T
	virt map[string]*libvirtd.Daemon
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
	script, err := os.ReadFile(qemutest.QEMU(t))
	must(t, err)
	m := regexp.MustCompile(`(?m)^T='(.*)'$`).FindSubmatch(script)
	if m == nil {
		return qemutest.QEMU(t) // one that is installed
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
	p := &pair{t: t, virt: map[string]*libvirtd.Daemon{}}
	dir, tools := shortDir(t), qemutest.Find(t)
	must(t, os.Chmod(dir, 0o711))
	tools.QEMU, tools.Kernel = publicQEMU(t, dir), public(t, dir, "vmlinuz", tools.Kernel)
	p.Pair = pairtest.New(t, pairtest.Options{Dir: dir, Tools: tools, Initrd: public(t, dir, "initrd", pairtest.Initrd(t, tools.Modules)), Configure: p.configure})
	return p
}

// configure has a node's QEMUs started by a libvirtd of its own.
func (p *pair) configure(c *colo.NodeConfig) {
	p.t.Helper()
	if p.virt[c.Name] == nil {
		p.virt[c.Name] = startDaemon(p.t, libvirtd.Options{Dir: filepath.Join(c.StorageDir, "lv"), Netns: c.Netns, User: "libvirt-qemu",
			HostUUID: "00000000-0000-4000-8000-00000000000" + strings.TrimPrefix(c.Name, "n")})
	}
	must(p.t, os.MkdirAll(c.RunDir, 0o755))
	d := p.virt[c.Name]
	c.BitmapRotation = 0
	c.Starter = libvirt.Starter{Address: libvirt.Address{Socket: d.Socket()}, LogDir: d.LogDir(), Netns: c.Netns}
}

// agree compares what virsh lists on both nodes with what the nodes say.
func (p *pair) agree(when string) {
	p.t.Helper()
	for name, d := range p.virt {
		out, err := d.Virsh(p.t.Context(), "list", "--all", "--name")
		must(p.t, err)
		s, err := p.Nodes[name].Status(p.t.Context(), "web")
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

// TestLife takes a VM whose copies are libvirt's domains, run by a user without privileges as Debian's libvirt does, through a whole life. At each step both virsh and the nodes must see the same, and the guest
// must not notice.
func TestLife(t *testing.T) {
	p := newPair(t)
	ctx := t.Context()
	must(t, p.Nodes["n1"].Start(ctx, "web"))
	p.agree("started")
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Status("n1").PID)); err != nil || !strings.Contains(string(text), "\nUid:\t64055\t64055") {
		t.Errorf("QEMU does not run as libvirt-qemu: %v: %s", err, text)
	}
	if got := p.virsh("n1", "domstate", "web"); got != "running" {
		t.Errorf("virsh says %q of a running guest", got)
	}
	write := p.Boot()
	write()
	p.Protect("n1")
	p.agree("protected")
	write()

	t.Log("libvirtd is restarted on both nodes")
	before := map[string]colo.Status{"n1": p.Status("n1"), "n2": p.Status("n2")}
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
		now := p.Status(name)
		if now.PID != was.PID || now.State != was.State || now.Generation != was.Generation || now.Checkpoints.Count <= was.Checkpoints.Count {
			t.Errorf("%s: libvirtd's restart did something: %+v, then %+v", name, was, now)
		}
	}

	t.Log("the primary is destroyed through libvirt")
	p.virsh("n1", "destroy", "web")
	p.AwaitState("n2", colo.Solo)
	write()
	p.AwaitState("n1", colo.Outdated)
	p.agree("failed over")
	p.Protect("n2")
	p.agree("protected again")

	t.Log("the secondary is killed while libvirtd is away")
	must(t, p.virt["n1"].Stop())
	p.Kill("n1")
	p.AwaitState("n2", colo.Solo)
	write()
	if err := p.Nodes["n2"].Protect(ctx, "web", colo.ProtectOptions{}); err == nil || !strings.Contains(err.Error(), "libvirtd can't be reached") {
		t.Errorf("protect without the peer's libvirtd: %v", err)
	}
	write()
	must(t, p.virt["n1"].Run(ctx))
	p.Protect("n2")
	p.agree("protected after libvirtd came back")
	write()
	must(t, p.Nodes["n2"].Switchover(ctx, "web"))
	p.AwaitState("n1", colo.Solo)
	write()
	p.agree("switched over")

	t.Log("a node's daemon is restarted under protection")
	p.Protect("n1")
	pid := p.Status("n1").PID
	must(t, p.Nodes["n1"].Close())
	must(t, p.Store["n1"].Close())
	p.Open("n1")
	must(t, p.Wire.Replace(p.Nodes["n1"]))
	p.Await("n1", "protected", func(s colo.Status) bool { return s.State == colo.Protected })
	if now := p.Status("n1").PID; now != pid {
		t.Errorf("process %d was %d before the restart", now, pid)
	}
	write()

	t.Log("the guest is shut down through libvirt")
	for { // libvirt refuses it in the middle of a checkpoint, while the guest is paused
		_, err := p.virt["n1"].Virsh(ctx, "shutdown", "web")
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "domain is not running") || p.Status("n1").State != colo.Protected {
			t.Fatal(err)
		}
	}
	p.AwaitState("n1", colo.Stopped)
	p.AwaitState("n2", colo.Outdated)
	p.agree("stopped")
	if s := p.Status("n1"); s.Want != colo.WantStopped {
		t.Errorf("after the guest's shutdown the VM is wanted %q", s.Want)
	}
}
