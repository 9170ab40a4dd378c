package netcompare

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/internal/qemutest"
	"github.com/coloctl/coloctl/qmp"
)

// guest is a real QEMU without a disk: its firmware finds nothing to boot and idles.
type guest struct {
	*qmp.Client
	rescue *qmp.Client // the second socket
	dir    string
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process is gone
}

// start runs QEMU on h. QEMU connects its monitors to us, so waiting for it is waiting for a connection.
func start(t *testing.T, h Host, nics []NIC, args ...string) *guest {
	t.Helper()
	binary := qemutest.QEMU(t)
	for _, n := range nics {
		must(t, h.EnsureTap(t.Context(), "web", n))
	}
	dir, err := os.MkdirTemp("", "netcompare") // t.TempDir is too long for unix sockets
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	argv := []string{"-name", "web", "-M", "pc", "-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none", "-no-shutdown"}
	var listeners []net.Listener
	for _, name := range []string{"qmp", "rescue"} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		must(t, err)
		listeners = append(listeners, l)
		argv = append(argv, "-chardev", "socket,id="+name+",path="+l.Addr().String(), "-mon", "mode=control,chardev="+name)
	}
	var stderr strings.Builder
	g := &guest{dir: dir, exited: make(chan struct{})}
	g.cmd = exec.Command(binary, slices.Concat(argv, Args(nics), args)...)
	g.cmd.Stderr = &stderr
	must(t, netns.Start(h.Netns, g.cmd))
	go func() {
		defer close(g.exited)
		_ = g.cmd.Wait()
		for _, l := range listeners {
			l.Close()
		}
	}()
	t.Cleanup(func() {
		g.kill()
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("QEMU said:\n%s", stderr.String())
		}
	})
	var clients []*qmp.Client
	for _, l := range listeners {
		conn, err := l.Accept()
		if err != nil {
			<-g.exited
			t.Fatalf("QEMU ended: %v\n%s", g.cmd.ProcessState, stderr.String())
		}
		c, err := qmp.NewClient(t.Context(), conn, nil)
		must(t, err)
		t.Cleanup(func() { c.Close() })
		clients = append(clients, c)
	}
	g.Client, g.rescue = clients[0], clients[1]
	return g
}

func (g *guest) kill() {
	_ = g.cmd.Process.Kill()
	<-g.exited
}

// yank does what must come before Disconnect when the peer is lost.
func (g *guest) yank(t *testing.T, nics []NIC) {
	t.Helper()
	have, err := g.rescue.QueryYank(t.Context())
	must(t, err)
	var cut []qmp.YankInstance
	for _, y := range have {
		if y.Type == "chardev" && slices.Contains(YankChardevs(nics), y.ID) {
			cut = append(cut, y)
		}
	}
	if len(cut) != 2*len(nics) {
		t.Errorf("can yank %v, want two chardevs for each NIC", cut)
	}
	must(t, g.rescue.Yank(t.Context(), cut...))
}

// left is what could be left over in QEMU and in its folder.
func (g *guest) left(t *testing.T) []string {
	t.Helper()
	have, err := look(t.Context(), g.Client)
	must(t, err)
	var l []string
	for id := range have.objects {
		l = append(l, "object "+id)
	}
	for id := range have.chardevs {
		l = append(l, "chardev "+id)
	}
	yank, err := g.QueryYank(t.Context())
	must(t, err)
	for _, y := range yank {
		l = append(l, "yank "+y.Type+" "+y.NodeName+y.ID)
	}
	files, err := os.ReadDir(g.dir)
	must(t, err)
	for _, f := range files {
		l = append(l, "file "+f.Name())
	}
	slices.Sort(l)
	return l
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: there is %v, want %v", what, got, want)
	}
}

// wire is a cable into a host's bridge.
type wire struct{ conn *os.File }

func plug(t *testing.T, h Host, bridge string) *wire {
	t.Helper()
	h.addBridge(t, bridge, 1500)
	h.ip(t, "link", "add", bridge+"-p", "type", "veth", "peer", "name", bridge+"-w")
	h.ip(t, "link", "set", "dev", bridge+"-p", "master", bridge, "up")
	h.ip(t, "link", "set", "dev", bridge+"-w", "up")
	var fd int
	must(t, netns.Do(h.Netns, func() (err error) {
		iface, err := net.InterfaceByName(bridge + "-w")
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: iface.Index})
	}))
	w := &wire{os.NewFile(uintptr(fd), bridge)}
	t.Cleanup(func() { w.conn.Close() })
	return w
}

// from waits for a frame of a MAC.
func (w *wire) from(mac string, wait time.Duration) bool {
	want, _ := net.ParseMAC(mac)
	_ = w.conn.SetReadDeadline(time.Now().Add(wait))
	buf := make([]byte, 2048)
	for {
		n, err := w.conn.Read(buf)
		if err != nil {
			return false
		}
		if n >= 14 && slices.Equal(buf[6:12], want) {
			return true
		}
	}
}

// drain forgets what has come so far.
func (w *wire) drain() {
	for w.from("ff:ff:ff:ff:ff:ff", time.Millisecond) {
	}
}

// pair is two nodes with a link and a LAN each for every NIC.
type pair struct {
	nics []NIC
	host [2]Host
	lan  [2]map[string]*wire
	ep   [2]Endpoint
	tls  string // folder of the keys; "" = without TLS
}

func newPair(t *testing.T, nics ...NIC) *pair {
	t.Helper()
	p := &pair{nics: nics}
	p.host[0], p.host[1] = linked(t)
	for i := range 2 {
		p.lan[i] = map[string]*wire{}
		p.ep[i] = Endpoint{Host: []string{"10.90.0.1", "10.90.0.2"}[i], Ports: map[string]PortPair{}}
		for j, n := range nics {
			p.ep[i].Ports[n.Name] = PortPair{9000 + 2*j, 9001 + 2*j}
			p.lan[i][n.Name] = plug(t, p.host[i], n.Bridge)
		}
	}
	return p
}

// secure turns on TLS, with a new key for the QEMUs that are started from here, and MPTCP.
func (p *pair) secure(t *testing.T) *pair {
	t.Helper()
	p.tls = t.TempDir()
	must(t, os.WriteFile(filepath.Join(p.tls, "keys.psk"), fmt.Appendf(nil, "qemu:%x\n", rand.Text()), 0o600))
	for i := range p.ep {
		p.ep[i].MPTCP = true
	}
	return p
}

// endpoint is node i's as server or client sees it.
func (p *pair) endpoint(i int, role string) Endpoint {
	ep := p.ep[i]
	if p.tls != "" {
		ep.TLSCreds = "tls-" + role
	}
	return ep
}

func (p *pair) start(t *testing.T, i int) *guest {
	t.Helper()
	var args []string
	if p.tls != "" {
		for _, role := range []string{"server", "client"} {
			args = append(args, "-object", "tls-creds-psk,id=tls-"+role+",endpoint="+role+",dir="+p.tls)
		}
	}
	return start(t, p.host[i], p.nics, args...)
}

func (p *pair) join(t *testing.T, i int) {
	t.Helper()
	for _, n := range p.nics {
		must(t, p.host[i].Join(t.Context(), n))
	}
}

// comparable are the NICs whose announcements pass a comparer. An announcement has no virtio-net header, and the filters of
// a virtio NIC take its beginning for one.
func (p *pair) comparable() []NIC {
	return slices.DeleteFunc(slices.Clone(p.nics), NIC.vnetHdr)
}

func (g *guest) options() Options { return Options{SocketDir: g.dir} }

// speaks tells whether an announcement of the guest is heard on the LANs of nics.
func (p *pair) speaks(t *testing.T, i int, g *guest, nics []NIC, want bool) {
	t.Helper()
	for _, n := range nics {
		p.lan[i][n.Name].drain()
	}
	must(t, Announce(t.Context(), g.Client, p.nics))
	wait := 5 * time.Second
	if !want {
		wait = 400 * time.Millisecond // several announcements
	}
	for _, n := range nics {
		if got := p.lan[i][n.Name].from(n.MAC, wait); got != want {
			t.Errorf("NIC %s of node %d is heard on its LAN: %v, want %v", n.Name, i, got, want)
		}
	}
	// Replaces the further rounds of the announcement.
	must(t, g.AnnounceSelf(t.Context(), qmp.AnnounceSelf{Initial: 1, Max: 1, Rounds: 1, Step: 1}))
}

var realNICs = []NIC{
	{Name: "net0", MAC: "52:54:00:12:34:56", Tap: "web-a", Bridge: "br0"},
	{Name: "net1", MAC: "52:54:00:12:34:57", Tap: "web-b", Bridge: "br1", Model: "e1000"},
	{Name: "net2", MAC: "52:54:00:12:34:58", Tap: "web-c", Bridge: "br2", Model: "rtl8139"},
}

// A pair is made, ends, and is made again in the other direction, on one QEMU any number of times and however the peer
// is lost. Nothing is ever left over but a former secondary's rewriters.
func TestRealQEMU(t *testing.T) {
	for name, prepare := range map[string]func(*testing.T) *pair{
		"one NIC":                       func(t *testing.T) *pair { return newPair(t, realNICs[:1]...) },
		"three NICs with TLS and MPTCP": func(t *testing.T) *pair { return newPair(t, realNICs...).secure(t) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, p := t.Context(), prepare(t)
			nics := p.nics
			a := p.start(t, 0)
			b := p.start(t, 1)
			p.join(t, 0)
			p.join(t, 1) // only to hear that it says nothing
			aEmpty, bEmpty := a.left(t), b.left(t)
			p.speaks(t, 0, a, nics, true)

			must(t, Listen(ctx, b.Client, nics, p.endpoint(1, "server")))
			if err := Streams(ctx, b.Client, nics); !errors.Is(err, ErrStream) {
				t.Errorf("streams before the primary has connected: %v", err)
			}
			must(t, Connect(ctx, a.Client, nics, p.endpoint(1, "client"), a.options()))
			p.speaks(t, 0, a, nics, true)
			must(t, Enable(ctx, a.Client, nics))
			must(t, Streams(ctx, a.Client, nics))
			must(t, Streams(ctx, b.Client, nics))
			p.speaks(t, 0, a, p.comparable(), true) // RARP passes the comparer
			p.speaks(t, 1, b, nics, false)
			mirrored(t, p, b)

			// Given up and made again while both live: the standby has to be new.
			must(t, Disconnect(ctx, a.Client, nics))
			same(t, "after Disconnect", a.left(t), aEmpty)
			p.speaks(t, 0, a, nics, true)
			for until := time.Now().Add(10 * time.Second); !errors.Is(Streams(ctx, b.Client, nics), ErrStream); { // its QEMU may not have seen it yet
				if time.Now().After(until) {
					t.Error("streams go on after the primary has left")
					break
				}
			}

			// The primary is lost: its secondary goes on, and protects itself with a new standby where the primary was.
			a.kill()
			must(t, Promote(ctx, b.Client, nics))
			must(t, Promote(ctx, b.Client, nics))
			promoted := slices.Clone(bEmpty)
			for _, n := range nics {
				promoted = append(promoted, "object "+n.rewriter())
			}
			slices.Sort(promoted)
			same(t, "after Promote", b.left(t), promoted)
			p.speaks(t, 1, b, nics, true)

			for _, loss := range []string{"kill", "freeze", "cut"} {
				a = p.start(t, 0)
				must(t, Listen(ctx, a.Client, nics, p.endpoint(0, "server")))
				must(t, Connect(ctx, b.Client, nics, p.endpoint(0, "client"), b.options()))
				must(t, Enable(ctx, b.Client, nics))
				p.speaks(t, 1, b, p.comparable(), true)
				p.speaks(t, 0, a, nics, false)
				switch loss {
				case "kill":
					a.kill()
				case "freeze":
					must(t, a.cmd.Process.Signal(unix.SIGSTOP))
				case "cut":
					p.host[0].ip(t, "link", "set", "dev", "link", "down")
				}
				begin := time.Now()
				b.yank(t, nics)
				yanked := time.Since(begin)
				must(t, Disconnect(ctx, b.Client, nics))
				t.Logf("%s: yank %v, then Disconnect %v", loss, yanked, time.Since(begin)-yanked)
				must(t, Disconnect(ctx, b.Client, nics))
				same(t, loss+", after Disconnect", b.left(t), promoted)
				p.speaks(t, 1, b, nics, true)
				a.kill()
				if loss == "cut" {
					p.host[0].ip(t, "link", "set", "dev", "link", "up")
				}
			}
		})
	}
}
