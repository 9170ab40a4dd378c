package guest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/internal/guest/service"
	"github.com/coloctl/coloctl/internal/qemutest"
)

// bootDeadline is generous: a guest under TCG shares the cores with other tests.
const bootDeadline = 3 * time.Minute

// machine is a real QEMU with a guest. Its services are forwarded, by QEMU's
// user networking, to a loopback address of its own, on the guest's ports + base.
type machine struct {
	cmd     *exec.Cmd
	host    string
	monitor string
	lines   chan string // of the console; closed when QEMU has closed it
}

// base keeps the forwarded ports above those that only root may use. FTP tells
// its clients ports for data, so these are forwarded unchanged.
const base = 10000

// image builds the guest once for a test.
func image(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	program, err := Init(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	initrd, err := Image(t.Context(), ImageOptions{InitBinary: program, ModulesDir: qemutest.Modules(t), CacheDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return initrd
}

// start starts a guest with the disks and as many NICs as the network has
// addresses; only the first one is forwarded. number tells machines of one
// process apart.
func start(t *testing.T, number int, initrd string, cpus int, n Network, disks ...string) *machine {
	t.Helper()
	pid := os.Getpid()
	m := &machine{
		host:    fmt.Sprintf("127.%d.%d.%d", 1+pid>>8&0x7f, pid&0xff, number),
		monitor: filepath.Join(t.TempDir(), "monitor"),
		lines:   make(chan string, 1000),
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-machine", "pc,accel=tcg", "-m", "256", "-smp", fmt.Sprint(cpus),
		"-kernel", qemutest.Kernel(t), "-initrd", initrd, "-append", CommandLine(n),
		"-serial", "stdio", "-monitor", "unix:" + m.monitor + ",server=on,wait=off",
	}
	for i, d := range disks {
		args = append(args, "-drive", fmt.Sprintf("if=none,id=d%d,format=raw,file=%s", i, d), "-device", fmt.Sprintf("virtio-blk-pci,drive=d%d", i))
	}
	for i := range n.Addresses {
		forward := ""
		if i == 0 {
			for _, port := range []int{service.PortHTTP, service.PortFTP, service.PortEcho} {
				forward += fmt.Sprintf(",hostfwd=tcp:%s:%d-:%d", m.host, base+port, port)
			}
			forward += fmt.Sprintf(",hostfwd=udp:%s:%d-:%d", m.host, base+service.PortEcho, service.PortEcho)
			for port := service.PassiveFirst; port <= service.PassiveLast; port++ {
				forward += fmt.Sprintf(",hostfwd=tcp:%s:%d-:%d", m.host, port, port)
			}
		}
		args = append(args, "-netdev", fmt.Sprintf("user,id=n%d,net=10.0.%d.0/24%s", i, 2+i, forward),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=n%d,romfile=", i))
	}
	m.cmd = exec.Command(qemutest.QEMU(t), args...)
	var report strings.Builder
	m.cmd.Stderr = &report
	console, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(m.lines)
		for s := bufio.NewScanner(console); s.Scan(); {
			m.lines <- strings.TrimSpace(s.Text())
		}
	}()
	t.Cleanup(func() {
		m.kill()
		<-read
		if t.Failed() && report.Len() > 0 {
			t.Log(report.String())
		}
	})
	return m
}

func (m *machine) kill() {
	if m.cmd.ProcessState == nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
	}
}

// line waits for a line of the console that begins so, and returns its rest.
func (m *machine) line(t *testing.T, prefix string) string {
	t.Helper()
	var seen []string
	deadline := time.NewTimer(bootDeadline)
	defer deadline.Stop()
	for {
		select {
		case line, ok := <-m.lines:
			if rest, found := strings.CutPrefix(line, prefix); found {
				return rest
			}
			seen = append(seen, line)
			if !ok || strings.HasPrefix(line, FailedLine) {
				t.Fatalf("the console ended without %q:\n%s", prefix, strings.Join(seen, "\n"))
			}
		case <-deadline.C:
			t.Fatalf("no %q within %v:\n%s", prefix, bootDeadline, strings.Join(seen, "\n"))
		}
	}
}

// ended waits for QEMU to end by itself.
func (m *machine) ended(t *testing.T) {
	t.Helper()
	deadline := time.NewTimer(bootDeadline)
	defer deadline.Stop()
	for {
		select {
		case _, ok := <-m.lines:
			if !ok {
				if err := m.cmd.Wait(); err != nil {
					t.Errorf("QEMU: %v", err)
				}
				return
			}
		case <-deadline.C:
			t.Fatal("QEMU did not end")
		}
	}
}

// command gives QEMU's monitor a command.
func (m *machine) command(t *testing.T, command string) {
	t.Helper()
	conn, err := net.Dial("unix", m.monitor)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if _, err := r.ReadString(')'); err != nil { // "(qemu) " asks for one
		t.Fatal(err)
	}
	fmt.Fprintln(conn, command)
	_, _ = r.ReadString(')') // the answer's end, or that of QEMU
}

func (m *machine) address(port int) string { return fmt.Sprintf("%s:%d", m.host, base+port) }

func (m *machine) http(t *testing.T, method, path string, header ...string) (int, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+m.address(service.PortHTTP)+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	// No connection is kept: one of before a reboot would be of no use.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: bootDeadline}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, content
}

func (m *machine) count(t *testing.T, id string) int64 {
	t.Helper()
	var c service.Count
	status, text := m.http(t, "POST", "/counter?id="+id)
	if err := json.Unmarshal(text, &c); err != nil || status != 200 || c.ID != id {
		t.Fatalf("counter: %d %s %v", status, text, err)
	}
	return c.N
}
