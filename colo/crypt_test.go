package colo_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coloctl/coloctl/colo"
	"github.com/coloctl/coloctl/internal/netns"
	"github.com/coloctl/coloctl/internal/pairtest"
)

// TestEncryption: QEMU is confined, the disk of a protected VM is exported to nobody without the key, and the key is in no file any more.
func TestEncryption(t *testing.T) {
	p := pairtest.New(t, pairtest.Options{})
	ctx := t.Context()
	must(t, p.Nodes["n1"].Start(ctx, "web"))
	must(t, p.Nodes["n1"].Protect(ctx, "web", colo.ProtectOptions{}))
	ports, err := p.Store["n2"].Ports("web", []string{"nbd"}, nil)
	must(t, err)
	addr := net.JoinHostPort(p.Top.Links[0].Addrs["n2"].Addr().String(), strconv.Itoa(ports["nbd"]))
	const optList, optGo, tlsRequired = 3, 7, 1<<31 + 5
	for _, option := range []uint32{optList, optGo} {
		conn := nbdHello(t, p, addr)
		out := binary.BigEndian.AppendUint32([]byte("\x00\x00\x00\x01IHAVEOPT"), option)
		if option == optGo {
			out = append(out, "\x00\x00\x00\x09\x00\x00\x00\x03vda\x00\x00"...)
		} else {
			out = append(out, 0, 0, 0, 0)
		}
		_, err := conn.Write(out)
		must(t, err)
		var reply struct {
			Magic        uint64
			Option, Kind uint32
		}
		must(t, binary.Read(conn, binary.BigEndian, &reply))
		if reply.Option != option || reply.Kind != tlsRequired {
			t.Errorf("a stranger's option %d is answered by %#x", option, reply.Kind)
		}
	}
	conn := nbdHello(t, p, addr)
	_, err = conn.Write([]byte("\x00\x00\x00\x01IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x03vda"))
	must(t, err)
	if n, err := io.Copy(io.Discard, conn); n > 0 {
		t.Errorf("a stranger gets %d bytes for the name of the export (%v)", n, err)
	}
	for _, name := range []string{"n1", "n2"} {
		s, err := p.Nodes[name].Status(ctx, "web")
		must(t, err)
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID))
		must(t, err)
		for _, want := range []string{"\nSeccomp:\t2\n", "\nNoNewPrivs:\t1\n"} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s: QEMU is not confined: no %q", name, want)
			}
		}
		if st, err := os.Stat(filepath.Join(p.Dir, name, "run", "web")); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: folder of the VM: %v, %v", name, st.Mode(), err)
		}
		must(t, filepath.WalkDir(filepath.Join(p.Dir, name), func(path string, _ os.DirEntry, err error) error {
			if strings.HasSuffix(path, ".psk") {
				t.Errorf("the key is still in %s", path)
			}
			return err
		}))
	}
	must(t, p.Nodes["n1"].Stop(ctx, "web", colo.StopOptions{Force: true}))
}

// nbdHello connects to an NBD server from the other node and reads its greeting.
func nbdHello(t *testing.T, p *pairtest.Pair, addr string) net.Conn {
	t.Helper()
	conn, err := netns.Dial(t.Context(), p.Top.Nodes["n1"].Netns(), "tcp", addr)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	must(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	hello := make([]byte, 18)
	_, err = io.ReadFull(bufio.NewReaderSize(conn, 18), hello)
	must(t, err)
	if string(hello[:16]) != "NBDMAGICIHAVEOPT" {
		t.Fatalf("greeting %q", hello)
	}
	return conn
}
