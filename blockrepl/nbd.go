package blockrepl

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// nbdClient reads a disk through a QEMU that has it open, and writes to one or to
// the server that a backup goes to. It speaks as much of the NBD protocol as that
// needs: newstyle, NBD_OPT_GO, simple replies. Requests may be made concurrently;
// they are sent one after the other and wait for their replies in order, which is
// what QEMU keeps busy with anyway for one reader.
type nbdClient struct {
	size  int64
	flags uint16 // what the export can

	mu   sync.Mutex
	conn net.Conn
	r    *bufio.Reader
	next uint64
	err  error // what broke the connection
}

// Numbers of the protocol, by the names of its specification.
const (
	nbdOptionMagic  = 0x49484156454f5054 // IHAVEOPT
	nbdReplyMagic   = 0x3e889045565a9
	nbdRequestMagic = 0x25609513
	nbdSimpleMagic  = 0x67446698

	nbdFlagFixedNewstyle = 1
	nbdFlagNoZeroes      = 2
	nbdOptGo             = 7
	nbdRepAck            = 1
	nbdRepInfo           = 3
	nbdRepError          = 1 << 31
	nbdInfoExport        = 0

	nbdErrUnsupported = nbdRepError | 1
	nbdErrTLSRequired = nbdRepError | 5
	nbdErrUnknown     = nbdRepError | 6

	nbdCanFlush       = 1 << 2
	nbdIsReadOnly     = 1 << 1
	nbdCanWriteZeroes = 1 << 6

	nbdCmdRead        = 0
	nbdCmdWrite       = 1
	nbdCmdDisconnect  = 2
	nbdCmdFlush       = 3
	nbdCmdWriteZeroes = 6
)

// nbdMaxRead fits into a unix socket's buffer (net.core.wmem_default). At a checkpoint QEMU waits until its answers have been taken: a larger one that a daemon which stands
// still doesn't take would hold it up.
const nbdMaxRead = HashBlock

// errNBD is what a server that doesn't keep to the protocol gets.
var errNBD = errors.New("blockrepl: unexpected answer of an NBD server")

// nbdRefusal is a server's word on an export that it doesn't open.
type nbdRefusal struct {
	code uint32
	text string
}

func (e *nbdRefusal) Error() string { return fmt.Sprintf("refused (%#x): %s", e.code, e.text) }

// dialNBD opens an export. Without TLS: it is for a QEMU's unix socket, or for
// one's own QEMU.
func dialNBD(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), network, addr, export string) (*nbdClient, error) {
	conn, err := dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	n := &nbdClient{conn: conn, r: bufio.NewReaderSize(conn, 256<<10)}
	stop := n.bound(ctx)
	err = n.negotiate(export)
	stop()
	if err != nil {
		_ = conn.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("NBD export %q at %s: %w", export, addr, err)
	}
	return n, nil
}

// bound makes what waits for the connection end with ctx.
func (n *nbdClient) bound(ctx context.Context) (stop func()) {
	s := context.AfterFunc(ctx, func() { _ = n.conn.SetDeadline(time.Unix(1, 0)) })
	return func() { s() }
}

func (n *nbdClient) negotiate(export string) error {
	var hello struct {
		Greeting [16]byte
		Flags    uint16
	}
	if err := binary.Read(n.r, binary.BigEndian, &hello); err != nil {
		return err
	}
	if string(hello.Greeting[:]) != greeting || hello.Flags&nbdFlagFixedNewstyle == 0 {
		return errNBD
	}
	out := binary.BigEndian.AppendUint32(nil, nbdFlagFixedNewstyle|uint32(hello.Flags&nbdFlagNoZeroes))
	out = binary.BigEndian.AppendUint64(out, nbdOptionMagic)
	out = binary.BigEndian.AppendUint32(out, nbdOptGo)
	out = binary.BigEndian.AppendUint32(out, uint32(4+len(export)+2))
	out = binary.BigEndian.AppendUint32(out, uint32(len(export)))
	out = append(out, export...)
	out = append(out, 0, 0) // no particular information
	if _, err := n.conn.Write(out); err != nil {
		return err
	}
	for {
		var rep struct {
			Magic                uint64
			Option, Kind, Length uint32
		}
		if err := binary.Read(n.r, binary.BigEndian, &rep); err != nil {
			return err
		}
		if rep.Magic != nbdReplyMagic || rep.Length > 64<<10 {
			return errNBD
		}
		data := make([]byte, rep.Length)
		if _, err := io.ReadFull(n.r, data); err != nil {
			return err
		}
		switch {
		case rep.Kind == nbdRepAck:
			return nil
		case rep.Kind&nbdRepError != 0:
			return &nbdRefusal{rep.Kind, string(data)}
		case rep.Kind == nbdRepInfo && len(data) >= 12 && binary.BigEndian.Uint16(data) == nbdInfoExport:
			n.size, n.flags = int64(binary.BigEndian.Uint64(data[2:])), binary.BigEndian.Uint16(data[10:])
		}
	}
}

// ask sends a request.
func (n *nbdClient) ask(cmd uint16, offset int64, length uint32, data []byte) error {
	n.next++
	req := binary.BigEndian.AppendUint32(nil, nbdRequestMagic)
	req = binary.BigEndian.AppendUint16(req, 0)
	req = binary.BigEndian.AppendUint16(req, cmd)
	req = binary.BigEndian.AppendUint64(req, n.next)
	req = binary.BigEndian.AppendUint64(req, uint64(offset))
	req = binary.BigEndian.AppendUint32(req, length)
	_, err := (&net.Buffers{req, data}).WriteTo(n.conn)
	return err
}

// do sends a request, with what it writes, and reads its answer into buf.
func (n *nbdClient) do(ctx context.Context, cmd uint16, offset int64, length uint32, data, buf []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return n.err
	}
	stop := n.bound(ctx)
	defer stop()
	refused, err := n.exchange(cmd, offset, length, data, buf)
	if err != nil { // what comes next on this connection is anybody's guess
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		n.err = fmt.Errorf("NBD connection: %w", err)
		_ = n.conn.Close()
		return n.err
	}
	return refused
}

func (n *nbdClient) exchange(cmd uint16, offset int64, length uint32, data, buf []byte) (refused, err error) {
	if err := n.ask(cmd, offset, length, data); err != nil {
		return nil, err
	}
	var rep struct {
		Magic, Error uint32
		Cookie       uint64
	}
	if err := binary.Read(n.r, binary.BigEndian, &rep); err != nil {
		return nil, err
	}
	if rep.Magic != nbdSimpleMagic || rep.Cookie != n.next {
		return nil, errNBD
	}
	if rep.Error != 0 {
		return fmt.Errorf("NBD request %d at %d: %w", cmd, offset, syscall.Errno(rep.Error)), nil // the protocol has Linux' numbers
	}
	_, err = io.ReadFull(n.r, buf)
	return nil, err
}

func (n *nbdClient) readAt(ctx context.Context, buf []byte, offset int64) error {
	for len(buf) > 0 {
		part := buf[:min(len(buf), nbdMaxRead)]
		if err := n.do(ctx, nbdCmdRead, offset, uint32(len(part)), nil, part); err != nil {
			return err
		}
		buf, offset = buf[len(part):], offset+int64(len(part))
	}
	return nil
}

// zero writes zeroes. Lengths up to 1 GiB go in one request.
func (n *nbdClient) zero(ctx context.Context, offset, length int64) error {
	for length > 0 {
		part := min(length, 1<<30)
		if err := n.do(ctx, nbdCmdWriteZeroes, offset, uint32(part), nil, nil); err != nil {
			return err
		}
		offset, length = offset+part, length-part
	}
	return nil
}

// write writes what goes into one request.
func (n *nbdClient) write(ctx context.Context, data []byte, offset int64) error {
	return n.do(ctx, nbdCmdWrite, offset, uint32(len(data)), data, nil)
}

// flush makes what was written durable.
func (n *nbdClient) flush(ctx context.Context) error {
	return n.do(ctx, nbdCmdFlush, 0, 0, nil, nil)
}

// Close says good-bye to the server.
func (n *nbdClient) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return nil
	}
	n.err = net.ErrClosed
	req := binary.BigEndian.AppendUint32(nil, nbdRequestMagic)
	req = binary.BigEndian.AppendUint16(req, 0)
	req = binary.BigEndian.AppendUint16(req, nbdCmdDisconnect)
	req = append(req, make([]byte, 8+8+4)...)
	_ = n.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = n.conn.Write(req)
	return n.conn.Close()
}
