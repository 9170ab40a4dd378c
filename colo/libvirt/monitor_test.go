package libvirt_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	goqemulib "github.com/digitalocean/go-qemu/qemu"

	"github.com/coloctl/coloctl/colo/libvirt"
	"github.com/coloctl/coloctl/internal/libvirtd"
	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/internal/qemutest"
	"github.com/coloctl/coloctl/qmp"
)

// domain is one that has nothing to do with us.
func domain(qemu, name, devices string) string {
	return `<domain type='qemu'><name>` + name + `</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>
<devices><emulator>` + qemu + `</emulator><controller type='usb' model='none'/><memballoon model='none'/>` + devices + `</devices></domain>`
}

func writeFile(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// TestMonitor looks at a domain of a real libvirt through its passthrough.
func TestMonitor(t *testing.T) {
	qemu, dir := qemutest.QEMU(t), shortDir(t)
	d := startDaemon(t, libvirtd.Options{Dir: dir})
	ctx := t.Context()
	at := libvirt.Address{Socket: d.Socket()}
	if _, err := libvirt.OpenMonitor(ctx, at, "other"); !errors.Is(err, libvirt.ErrNoDomain) {
		t.Errorf("no such domain: %v", err)
	}
	_, err := d.Virsh(ctx, "create", "--paused", writeFile(t, dir, "other.xml", domain(qemu, "other", "")))
	must(t, err)
	t.Cleanup(func() { _, _ = d.Virsh(context.Background(), "destroy", "other") })
	m, err := libvirt.OpenMonitor(ctx, at, "other")
	must(t, err)
	defer m.Close()
	if st, err := m.QueryStatus(ctx); err != nil || st.Status != "prelaunch" {
		t.Errorf("status: %+v, %v", st, err)
	}
	if err := m.Execute(ctx, "device_del", map[string]string{"id": "nothing"}, nil); !qmp.IsClass(err, qmp.ClassDeviceNotFound) {
		t.Errorf("an error inside the reply came as %v", err)
	}
	if f, err := qmp.Probe(ctx, m.Client); err != nil || f.Require(qmp.ColoFeatures()...) != nil { // its schema is one reply of 250 KB
		t.Errorf("probe: %v", err)
	}
	if err := m.ExecuteOOB(ctx, "query-yank", nil, nil); !errors.Is(err, qmp.ErrNotSupported) {
		t.Errorf("out of band: %v", err)
	}

	t.Log("events without data arrive")
	sub := m.Subscribe(qmp.SubscribeOptions{})
	for _, step := range []struct{ virsh, event string }{{"resume", "RESUME"}, {"suspend", "STOP"}, {"resume", "RESUME"}} {
		_, err := d.Virsh(ctx, step.virsh, "other")
		must(t, err)
		wait, cancel := context.WithTimeout(ctx, 10*time.Second)
		ev, err := sub.Wait(wait, func(e *qmp.Event) bool { return e.Name == "STOP" || e.Name == "RESUME" })
		cancel()
		if err != nil || ev.Name != step.event {
			t.Errorf("virsh %s: %+v, %v", step.virsh, ev, err)
		}
	}

	t.Log("go-qemu works on top")
	dom, err := goqemulib.NewDomain(qmp.AsMonitor(m.Client, 5*time.Second), "other")
	must(t, err)
	if st, err := dom.Status(); err != nil || st != goqemulib.StatusRunning {
		t.Errorf("go-qemu: %v, %v", st, err)
	}

	t.Log("libvirtd's restart ends the monitor, and says so")
	must(t, d.Stop())
	select {
	case <-m.Done():
	case <-time.After(5 * time.Second):
		t.Error("the monitor outlives libvirtd")
	}
	must(t, d.Run(ctx))
	again, err := libvirt.OpenMonitor(ctx, at, "other")
	must(t, err)
	defer again.Close()
	if st, err := again.QueryStatus(ctx); err != nil || !st.Running {
		t.Errorf("after libvirtd's restart: %+v, %v", st, err)
	}
}

// TestHungLibvirtd: a libvirtd that accepts and says nothing holds nobody up for longer than he wants.
func TestHungLibvirtd(t *testing.T) {
	d := startDaemon(t, libvirtd.Options{Dir: shortDir(t)})
	must(t, syscall.Kill(d.PID(), syscall.SIGSTOP))
	defer syscall.Kill(d.PID(), syscall.SIGCONT)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, _, err := libvirt.Starter{Address: libvirt.Address{Socket: d.Socket()}}.User(ctx)
	if !errors.Is(err, libvirt.ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(start), err)
	}
}

// TestForeignDomain: a domain of the VM's name that somebody else has made is neither ended nor replaced.
func TestForeignDomain(t *testing.T) {
	qemu, dir := qemutest.QEMU(t), shortDir(t)
	d := startDaemon(t, libvirtd.Options{Dir: dir})
	ctx := t.Context()
	_, err := d.Virsh(ctx, "define", writeFile(t, dir, "web.xml", domain(qemu, "web", "")))
	must(t, err)
	s := libvirt.Starter{Address: libvirt.Address{Socket: d.Socket()}, LogDir: d.LogDir()}
	if err := s.Forget(ctx, "web"); !errors.Is(err, libvirt.ErrNameTaken) {
		t.Errorf("forget: %v", err)
	}
	if out, err := d.Virsh(ctx, "list", "--all", "--name"); err != nil || strings.TrimSpace(out) != "web" {
		t.Errorf("the domain is gone: %q, %v", out, err)
	}
	text, err := s.Ready(ctx)
	if err != nil || !strings.Contains(text, "user "+strconv.Itoa(os.Geteuid())) {
		t.Errorf("ready: %q, %v", text, err)
	}
	other, err := netns.Create()
	must(t, err)
	defer other.Close()
	s.Netns = other.Path()
	if _, err := s.Ready(ctx); err == nil || !strings.Contains(err.Error(), "another network namespace") {
		t.Errorf("in another namespace: %v", err)
	}
}
