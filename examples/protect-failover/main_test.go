package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/guest"
	"github.com/coloctl/coloctl/internal/lab"
	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/internal/pairtest"
	"github.com/coloctl/coloctl/internal/qemutest"
	"github.com/coloctl/coloctl/netcompare/comparer"
)

const guestAddr = "10.77.0.10"

// TestRun gives the program two networks and a guest, and asks the guest who it is before and after the loss of its host.
func TestRun(t *testing.T) {
	env := qemutest.Find(t)
	if !inLab(t) {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	top, err := lab.NewTopology(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = top.Close() })
	dir := lab.Path() // short: it holds unix sockets
	args := []string{"-dir", dir, "-spec", writeSpec(t, ctx, dir, env), "-qemu", env.QEMU, "-qemu-img", env.Img, "-accel", "tcg"}
	for i, n := range []string{"n1", "n2"} {
		args = append(args, "-"+n, top.Nodes[n].Netns(), fmt.Sprintf("-link%d", i+1), top.Links[0].Addrs[n].Addr().String())
	}

	told, out := io.Pipe()
	in, enter := io.Pipe()
	defer enter.Close()
	ended := make(chan error, 1)
	go func() {
		err := run(ctx, args, in, out)
		_ = out.Close() // never fails
		ended <- err
	}()
	ask := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return netns.Dial(ctx, top.Client.Netns(), network, addr)
		}}}
	var ids []string
	lines := bufio.NewScanner(told)
	for lines.Scan() {
		t.Log(lines.Text())
		if strings.Contains(lines.Text(), "; Enter ") {
			ids = append(ids, bootID(t, ctx, ask))
			_, err := io.WriteString(enter, "\n")
			must(t, err)
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if len(ids) != 3 || ids[0] == "" || ids[1] != ids[0] || ids[2] != ids[0] {
		t.Errorf("boot ids alone, protected and after the loss: %q, want three times the same", ids)
	}
}

func TestMain(m *testing.M) {
	comparer.Main()
	lab.Main()
	os.Exit(m.Run())
}

// inLab runs the calling test again in a lab's namespaces, which need no root, and returns false; in there it returns true.
func inLab(t *testing.T) bool {
	t.Helper()
	if lab.Inside() {
		return true
	}
	folder, err := lab.MakeFolder("")
	must(t, err)
	defer folder.Remove()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	must(t, err)
	defer out.Close()
	err = lab.Start(t.Context(), folder, lab.StartOptions{Args: []string{"-test.v", "-test.timeout=9m", "-test.run=^" + t.Name() + "$"}, Stdout: out, Stderr: out})
	text, readErr := os.ReadFile(out.Name())
	must(t, readErr)
	t.Logf("%s", text)
	if errors.Is(err, lab.ErrPrecondition) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	must(t, err)
	return false
}

// writeSpec makes the guest and the spec of a VM with it.
func writeSpec(t *testing.T, ctx context.Context, dir string, env qemutest.Tools) string {
	t.Helper()
	initrd := pairtest.Initrd(t, env.Modules)
	must(t, os.Mkdir(filepath.Join(dir, "n1"), 0o700))
	must(t, guest.FormatDisk(ctx, filepath.Join(dir, "n1", "web.raw"), 64<<20))
	text, err := colo.MarshalSpec(&colo.Spec{
		Name: "web", Memory: 256 << 20, CPU: "qemu64",
		Boot:  colo.Boot{Kernel: env.Kernel, Initrd: initrd, Append: guest.CommandLine(guest.Network{Addresses: []string{guestAddr + "/24"}})},
		Disks: []colo.DiskSpec{{Name: "vda", File: "web.raw", Size: 64 << 20}},
		NICs:  []colo.NICSpec{{Name: "net0", Bridge: lab.NodeBridge, MAC: "52:54:00:12:34:56"}},
	})
	must(t, err)
	path := filepath.Join(dir, "web.yaml")
	must(t, os.WriteFile(path, text, 0o600))
	return path
}

// bootID asks the guest, which may still be booting.
func bootID(t *testing.T, ctx context.Context, c *http.Client) string {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := c.Get("http://" + guestAddr + "/id")
		if err == nil {
			var id struct {
				BootID string `json:"boot_id"`
			}
			err = json.NewDecoder(resp.Body).Decode(&id)
			resp.Body.Close()
			if err == nil {
				return id.BootID
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Errorf("the guest doesn't answer: %v", err)
			return ""
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
