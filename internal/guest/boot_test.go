package guest

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jlaffaye/ftp"

	"github.com/coloctl/coloctl/internal/guest/blob"
	"github.com/coloctl/coloctl/internal/guest/service"
)

func newDisk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := FormatDisk(t.Context(), path, 64<<20); err != nil {
		t.Fatal(err)
	}
	return path
}

// checkDisk is a test of the unmount: its file system was left clean.
func checkDisk(t *testing.T, path string) {
	t.Helper()
	fsck, err := exec.LookPath("/usr/sbin/e2fsck")
	if err != nil {
		t.Fatal(err)
	}
	if output, err := exec.CommandContext(t.Context(), fsck, "-f", "-n", path).CombinedOutput(); err != nil ||
		strings.Contains(string(output), "recovering journal") {
		t.Errorf("e2fsck: %v\n%s", err, output)
	}
}

// TestGuest boots one guest with 256 MB and one vCPU and uses all it offers,
// through a reboot, the power button and a crash.
func TestGuest(t *testing.T) {
	initrd, disk := image(t), newDisk(t)
	network := Network{Addresses: []string{"10.0.2.15/24"}, Gateway: "10.0.2.2"}
	began := time.Now()
	m := start(t, 1, initrd, 1, network, disk)
	boot := m.line(t, ReadyLine)
	t.Logf("ready after %v", time.Since(began).Round(10*time.Millisecond))

	var id service.Identity
	if _, text := m.http(t, "GET", "/id"); json.Unmarshal(text, &id) != nil || id.BootID != boot {
		t.Errorf("id %s, the console said %s", text, boot)
	}
	measure(t, "/id", func(int) { m.http(t, "GET", "/id") })
	measure(t, "/counter", func(i int) {
		if n := m.count(t, fmt.Sprint("m", i)); n != int64(i+1) {
			t.Errorf("request %d got %d", i, n)
		}
	})
	if n := m.count(t, "m5"); n != 6 {
		t.Errorf("a repeated id got %d, 6 is its number", n)
	}
	t.Run("blob", func(t *testing.T) { checkBlob(t, m) })
	t.Run("ftp", func(t *testing.T) { checkFTP(t, m) })
	t.Run("echo", func(t *testing.T) { checkEcho(t, m) })

	_, before := m.http(t, "GET", "/log")
	if status, _ := m.http(t, "POST", "/reboot"); status != 202 {
		t.Fatalf("reboot: %d", status)
	}
	again := m.line(t, ReadyLine)
	if again == boot {
		t.Error("the boot id is the same after a reboot")
	}
	if _, after := m.http(t, "GET", "/log"); string(after) != string(before) {
		t.Errorf("log after the reboot:\n%s\nbefore:\n%s", after, before)
	}
	last := int64(strings.Count(string(before), "\n"))
	if n := m.count(t, "m5"); n != 6 {
		t.Errorf("a repeated id got %d after the reboot", n)
	}
	if n := m.count(t, "new"); n != last+1 {
		t.Errorf("a new id got %d after the reboot, want %d", n, last+1)
	}

	m.command(t, "system_powerdown")
	m.ended(t)
	checkDisk(t, disk)

	// A crash: what was acknowledged is on the disk.
	m = start(t, 2, initrd, 1, network, disk)
	m.line(t, ReadyLine)
	if n := m.count(t, "crash"); n != last+2 {
		t.Errorf("before the crash: %d, want %d", n, last+2)
	}
	m.kill()
	m = start(t, 3, initrd, 1, network, disk)
	m.line(t, ReadyLine)
	if n := m.count(t, "crash"); n != last+2 {
		t.Errorf("after the crash: %d, want %d", n, last+2)
	}
	if status, _ := m.http(t, "POST", "/poweroff"); status != 202 {
		t.Errorf("poweroff: %d", status)
	}
	m.ended(t)
	checkDisk(t, disk)
}

// measure reports how long a request takes at the client.
func measure(t *testing.T, what string, request func(i int)) {
	t.Helper()
	times := make([]time.Duration, 50)
	for i := range times {
		began := time.Now()
		request(i)
		times[i] = time.Since(began)
	}
	slices.Sort(times)
	t.Logf("%s: p50 %v, p90 %v, max %v", what, times[len(times)/2], times[len(times)*9/10], times[len(times)-1])
}

func checkBlob(t *testing.T, m *machine) {
	const size = 20_000_001
	began := time.Now()
	status, content := m.http(t, "GET", fmt.Sprintf("/blob?size=%d&seed=4", size))
	t.Logf("HTTP: %.0f MB/s", size/1e6/time.Since(began).Seconds())
	sum := sha256.Sum256(content)
	if status != 200 || hex.EncodeToString(sum[:]) != blob.SHA256(size, 4) {
		t.Errorf("%d, %d bytes, wrong checksum", status, len(content))
	}
	status, part := m.http(t, "GET", fmt.Sprintf("/blob?size=%d&seed=4", size), "Range", "bytes=131000-19000000")
	if status != 206 || string(part) != string(content[131000:19000001]) {
		t.Errorf("range: %d, %d bytes", status, len(part))
	}
}

func checkFTP(t *testing.T, m *machine) {
	c, err := ftp.Dial(m.address(service.PortFTP), ftp.DialWithTimeout(30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Quit() }()
	if err := c.Login("anonymous", "x"); err != nil {
		t.Fatal(err)
	}
	const size = 20_000_000
	whole := sha256.New()
	var done int64
	// Broken off twice and gone on with.
	for _, until := range []int64{5_000_000, 5_000_001, size} {
		r, err := c.RetrFrom(service.BlobPath(size, 0), uint64(done))
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.CopyN(whole, r, until-done)
		if err != nil {
			t.Fatal(err)
		}
		done += n
		if err := r.Close(); err != nil && done == size {
			t.Fatal(err) // earlier, the server says that the transfer was broken off
		}
	}
	if hex.EncodeToString(whole.Sum(nil)) != blob.SHA256(size, 0) {
		t.Error("wrong checksum")
	}
}

func checkEcho(t *testing.T, m *machine) {
	conn, err := net.Dial("tcp", m.address(service.PortEcho))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	for i := 1; i <= 3; i++ {
		fmt.Fprintln(conn, "hello")
		if line, err := r.ReadString('\n'); err != nil || line != fmt.Sprintf("%d hello\n", i) {
			t.Errorf("%q, %v", line, err)
		}
	}
	udp, err := net.Dial("udp", m.address(service.PortEcho))
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	answer := make([]byte, 100)
	// A datagram may be lost.
	for range 5 {
		fmt.Fprint(udp, "hello")
		if err := udp.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := udp.Read(answer)
		if err == nil && string(answer[:n]) == "hello" {
			return
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%q, %v", answer[:n], err)
		}
	}
	t.Error("UDP: no answer")
}

// TestGuestWithTwoOfEverything: two vCPUs, two NICs, two disks. The services
// are on the first ones; the second NIC has its address and the second disk,
// not formatted, is left alone.
func TestGuestWithTwoOfEverything(t *testing.T) {
	initrd, disk := image(t), newDisk(t)
	raw := filepath.Join(t.TempDir(), "second.raw")
	if err := os.WriteFile(raw, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	m := start(t, 4, initrd, 2, Network{Addresses: []string{"10.0.2.15/24", "10.0.3.15/24"}}, disk, raw)
	m.line(t, ReadyLine)
	if n := m.count(t, "a"); n != 1 {
		t.Errorf("counter: %d", n)
	}
}

// TestGuestSaysWhyItFails: an unformatted disk ends in a line and not in a hang.
func TestGuestSaysWhyItFails(t *testing.T) {
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	m := start(t, 5, image(t), 1, Network{}, raw)
	if why := m.line(t, FailedLine); !strings.Contains(why, "mount /dev/vda") {
		t.Errorf("reason %q", why)
	}
	m.ended(t)
}
