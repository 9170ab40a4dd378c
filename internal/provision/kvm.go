package provision

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/coloctl/coloctl/internal/guest"
)

// kvmDeadline is how long the probe guest may take. With KVM it is ready in
// about a second; where it takes longer, KVM is emulated or broken.
const kvmDeadline = 8 * time.Second

// kvmResult is the file kvm.json in the cache. The probe of a KVM that hangs
// takes seconds, so its result is kept until the machine starts anew or
// another QEMU is used.
type kvmResult struct {
	BootID  string `json:"boot_id"`
	QEMU    string `json:"qemu"`
	Version string `json:"version"`
	Usable  bool   `json:"usable"`
	Why     string `json:"why,omitempty"`
}

// accel returns "kvm" if a guest runs with it, else "tcg".
//
// /dev/kvm may open and answer and still run no guest, on a nested machine for
// one, so only a guest that became ready is a proof.
func (c *cache) accel(ctx context.Context, t *Tools) (string, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", nil
	}
	_ = f.Close()
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	want := kvmResult{BootID: strings.TrimSpace(string(bootID)), QEMU: t.QEMU[0], Version: t.Version}
	var known kvmResult
	if text, err := os.ReadFile(c.path("kvm.json")); err == nil && json.Unmarshal(text, &known) == nil &&
		known.BootID == want.BootID && known.QEMU == want.QEMU && known.Version == want.Version {
		return accelName(known.Usable), nil
	}

	c.out.step("trying KVM with a small guest")
	why, err := c.probeKVM(ctx, t)
	if err != nil {
		return "", err
	}
	want.Usable = why == ""
	want.Why = why
	if !want.Usable {
		c.out.step("KVM is not usable (%s): going on with TCG, which is slower", why)
	}
	text, err := json.Marshal(want)
	if err != nil {
		return "", err
	}
	return accelName(want.Usable), writeFile(c.path("kvm.json"), append(text, '\n'), 0o644)
}

func accelName(kvm bool) string {
	if kvm {
		return "kvm"
	}
	return "tcg"
}

// probeKVM starts a guest and returns why it did not become ready; empty if
// it did.
func (c *cache) probeKVM(ctx context.Context, t *Tools) (string, error) {
	program, err := guest.Init(ctx, c.path("guest"))
	if err != nil {
		return "", err
	}
	initrd, err := guest.Image(ctx, guest.ImageOptions{InitBinary: program, ModulesDir: t.ModulesDir, CacheDir: c.path("guest")})
	if err != nil {
		return "", err
	}
	probe, cancel := context.WithTimeout(ctx, kvmDeadline)
	defer cancel()
	args := append(t.QEMU[1:len(t.QEMU):len(t.QEMU)],
		"-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc,accel=kvm", "-cpu", "host", "-m", "256",
		"-kernel", t.Kernel, "-initrd", initrd, "-append", guest.CommandLine(guest.Network{}), "-serial", "stdio")
	qemu := command(probe, t.QEMU[0], args...)
	// A QEMU whose guest hangs in KVM does not always heed a polite signal.
	qemu.Cancel = func() error { return qemu.Process.Kill() }
	var report strings.Builder
	qemu.Stderr = &report
	console, err := qemu.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := qemu.Start(); err != nil {
		return "", err
	}
	ready := false
	lines := bufio.NewScanner(console)
	for !ready && lines.Scan() {
		ready = strings.HasPrefix(lines.Text(), guest.ReadyLine)
	}
	timedOut := probe.Err() != nil
	cancel()
	_, _ = io.Copy(io.Discard, console)
	ended := qemu.Wait()
	switch {
	case ctx.Err() != nil:
		return "", ctx.Err()
	case ready:
		return "", nil
	case timedOut:
		return fmt.Sprintf("the guest was not ready after %v", kvmDeadline), nil
	default:
		first, _, _ := strings.Cut(strings.TrimSpace(report.String()), "\n")
		return fmt.Sprintf("%v: %s", ended, first), nil
	}
}
