package blockrepl

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Content reads what a disk's image holds while QEMU has it open. The image of
// a raw disk is read directly: QEMU's writes go through the same page cache. That of
// a qcow2 disk is read through QEMU, whose tables may be newer than the file's.
// All methods may be called concurrently; what is written during a read may be
// seen half.
type Content struct {
	size int64
	file *os.File
	nbd  *nbdClient
}

// OpenContent opens a disk's content. at is where the disk's QEMU exports it;
// it is not used for raw images. Call Close at the end.
func OpenContent(ctx context.Context, d Disk, at Address, dial func(context.Context, string, string) (net.Conn, error)) (*Content, error) {
	if d.Format == Raw {
		return openFile(d)
	}
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	n, err := dialNBD(ctx, dial, "tcp", net.JoinHostPort(at.Host, strconv.Itoa(at.Port)), d.Name)
	if err != nil {
		return nil, err
	}
	return newContent(d, n)
}

func newContent(d Disk, n *nbdClient) (*Content, error) {
	if n.size != d.Size {
		_ = n.Close()
		return nil, d.fault(ErrWrongSize, "QEMU exports "+strconv.FormatInt(n.size, 10)+" bytes", "")
	}
	return &Content{size: d.Size, nbd: n}, nil
}

func openFile(d Disk) (*Content, error) {
	f, err := os.Open(d.Path)
	if err != nil {
		return nil, d.fault(err, "", "")
	}
	return &Content{size: d.Size, file: f}, nil
}

// Close ends all reads.
func (c *Content) Close() error {
	if c.nbd != nil {
		return c.nbd.Close()
	}
	return c.file.Close()
}

// Blocks and their hashes.
const (
	// HashBlock is how many bytes one hash is about. It is what a bit of a
	// bitmap stands for, so nothing smaller could be copied anyway.
	HashBlock = granularity

	// SumSize is the length of a hash in bytes.
	SumSize = 16
	// KeySize is the length of a key in bytes.
	KeySize = 32
)

// NewKey makes the secret with which both sides of one comparison hash, and no other: a guest chooses what is on its disk, and must not be able to
// make two blocks that only look equal. It sees neither key nor hashes, so a universal hash is enough, which is several times as fast as a cryptographic
// one: the authentication code of AES-GCM. Two different blocks of HashBlock bytes have the same one for at most one of 2^115 keys.
func NewKey() []byte {
	key := make([]byte, KeySize)
	_, _ = rand.Read(key) // never fails
	return key
}

// hasher hashes blocks with a key.
type hasher struct {
	code cipher.AEAD
	zero []byte // hash of a whole block of zeroes
}

// noNonce is the same for all blocks: equal ones must have equal hashes. That is right for a code that nobody sees but the two that have the key.
var (
	noNonce   [12]byte
	zeroBlock [HashBlock]byte
)

func newHasher(key []byte) (*hasher, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("blockrepl: a key of %d bytes to hash with instead of %d", len(key), KeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	h := &hasher{}
	if h.code, err = cipher.NewGCM(block); err != nil {
		return nil, err
	}
	h.zero = h.add(nil, zeroBlock[:])
	return h, nil
}

// add appends the hash of b.
func (h *hasher) add(to, b []byte) []byte { return h.code.Seal(to, noNonce[:], nil, b) }

// Part is what is to be hashed of a disk.
type Part struct {
	Disk           string
	Key            []byte // see [NewKey]
	Offset, Length int64
}

// Sums hashes the blocks from p.Offset on, which must be a multiple of HashBlock,
// and returns the hashes one after the other. The last block of a disk can be
// short. Holes of a file cost no reads.
func (c *Content) Sums(ctx context.Context, p Part) ([]byte, error) {
	offset, length := p.Offset, p.Length
	if offset%HashBlock != 0 || offset < 0 || length <= 0 || offset+length > c.size {
		return nil, errors.New("blockrepl: hashes of a range that the disk doesn't have")
	}
	h, err := newHasher(p.Key)
	if err != nil {
		return nil, err
	}
	const piece = 4 * HashBlock // what stays in a core's cache between the read and the hash
	end := offset + length
	out := make([]byte, 0, (length+HashBlock-1)/HashBlock*SumSize)
	buf := make([]byte, piece)
	data := offset // no hole before
	for at := offset; at < end; {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if c.file != nil && at >= data {
			data = c.data(at)
		}
		if hole := min(data, end) - at; hole >= HashBlock {
			for ; hole >= HashBlock; hole -= HashBlock {
				out = append(out, h.zero...)
				at += HashBlock
			}
			continue
		}
		b := buf[:min(piece, end-at)]
		if err := c.readAt(ctx, b, at); err != nil {
			return nil, err
		}
		for at += int64(len(b)); len(b) > 0; {
			part := b[:min(HashBlock, len(b))]
			out, b = h.add(out, part), b[len(part):]
		}
		data = at
	}
	return out, nil
}

// data returns where the next data of the file begin, at the earliest at.
func (c *Content) data(at int64) int64 {
	next, err := unix.Seek(int(c.file.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return c.size // nothing but a hole up to the end
	case err != nil:
		return at // a file system, or a device, that doesn't tell
	}
	return next
}

func (c *Content) readAt(ctx context.Context, b []byte, offset int64) error {
	if c.nbd != nil {
		return c.nbd.readAt(ctx, b, offset)
	}
	n, err := c.file.ReadAt(b, offset)
	if errors.Is(err, io.EOF) { // a raw image whose file ends within its last sector
		clear(b[n:])
		err = nil
	}
	return err
}

// MakeDurable writes what the kernel still keeps of the disks' images to their
// platters, whoever wrote it. A half that was found equal stays so only from
// then on: a host that loses power would otherwise go back to older data.
func MakeDurable(disks []Disk) error {
	var errs []error
	for _, d := range disks {
		f, err := os.Open(d.Path)
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			errs = append(errs, d.fault(err, "", ""))
		}
	}
	return errors.Join(errs...)
}
