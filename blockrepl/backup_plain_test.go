package blockrepl

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
)

// plainNBD is an NBD server on a socket that offers no more than flags say, and answers until its client has gone. It counts what it gets.
type plainNBD struct {
	flags          uint16
	size           int64
	asked          []uint16 // commands
	longest, total uint32
	ended          chan struct{}
	socket         string
}

func servePlain(t *testing.T, p *plainNBD) {
	t.Helper()
	p.socket, p.ended = filepath.Join(t.TempDir(), "nbd"), make(chan struct{})
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", p.socket)
	must(t, err)
	t.Cleanup(func() { _ = l.Close(); <-p.ended })
	go func() {
		defer close(p.ended)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		send := func(parts ...any) {
			for _, v := range parts {
				_ = binary.Write(conn, binary.BigEndian, v)
			}
		}
		send([]byte(greeting), uint16(nbdFlagFixedNewstyle|nbdFlagNoZeroes))
		var option struct {
			Flags        uint32
			Magic        uint64
			Kind, Length uint32
		}
		if binary.Read(conn, binary.BigEndian, &option) != nil {
			return
		}
		_, _ = io.CopyN(io.Discard, conn, int64(option.Length))
		send(uint64(nbdReplyMagic), uint32(nbdOptGo), uint32(nbdRepInfo), uint32(12), uint16(nbdInfoExport), p.size, p.flags)
		send(uint64(nbdReplyMagic), uint32(nbdOptGo), uint32(nbdRepAck), uint32(0))
		for {
			var r struct {
				Magic          uint32
				Flags, Command uint16
				Cookie, Offset uint64
				Length         uint32
			}
			if binary.Read(conn, binary.BigEndian, &r) != nil || r.Command == nbdCmdDisconnect {
				return
			}
			p.asked = append(p.asked, r.Command)
			if r.Command == nbdCmdWrite {
				_, _ = io.CopyN(io.Discard, conn, int64(r.Length))
				p.longest, p.total = max(p.longest, r.Length), p.total+r.Length
			}
			send(uint32(nbdSimpleMagic), uint32(0), r.Cookie)
		}
	}()
}

// TestBackupPlainServer: one that can't make what was written durable is refused. To one that can't make zeroes they are written, in few requests, and are flushed
// as data is.
func TestBackupPlainServer(t *testing.T) {
	d := Disk{Name: "vda", Size: 300*mib + 512}
	unsafe := &plainNBD{size: d.Size, flags: 1}
	servePlain(t, unsafe)
	if err := (BackupServer{Network: "unix", Address: unsafe.socket}).Check(t.Context(), []Disk{d}); !errors.Is(err, ErrExportUnsafe) {
		t.Errorf("an export that can't be flushed: %v", err)
	}
	plain := &plainNBD{size: d.Size, flags: 1 | nbdCanFlush}
	servePlain(t, plain)
	s := BackupServer{Network: "unix", Address: plain.socket}
	e, err := s.open(t.Context(), []Disk{d})
	must(t, err)
	parts := make(chan diskPart)
	go func() {
		defer close(parts)
		for at := int64(0); at < d.Size; at += backupZeroes {
			parts <- diskPart{offset: at, length: min(backupZeroes, d.Size-at)}
		}
	}()
	p := &diskCopy{o: BackupOptions{Server: &s}, d: d, to: e[d.Name], done: new(atomic.Int64)}
	must(t, p.write(t.Context(), parts, nil))
	e.Close()
	<-plain.ended
	flushes := 0
	for _, cmd := range plain.asked {
		if cmd == nbdCmdFlush {
			flushes++
		}
	}
	if flushes != 2 || len(plain.asked) != 301+flushes || plain.longest != backupWrite || int64(plain.total) != d.Size || p.done.Load() != d.Size {
		t.Errorf("%d flushes, %d requests of up to %d bytes, %d bytes of %d", flushes, len(plain.asked), plain.longest, plain.total, d.Size)
	}
}
