// Package blob is the deterministic byte stream that the lab's guest serves
// over HTTP and FTP and that a client checks without having a copy.
//
// A blob is named by its size and a seed. It is a sequence of stripes of
// StripeSize bytes; each begins with its own number (8 bytes, big endian) and
// goes on with a pattern that depends on the seed only. So making it costs no
// more than writing it, which counts in a guest without hardware acceleration,
// and still bytes that are lost, repeated or moved change the checksum.
//
// A Reader must not be used by two goroutines at once; different Readers share
// nothing that is written to.
package blob

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// StripeSize is the length in bytes of one stripe.
const StripeSize = 64 << 10

// Reader reads a blob. It implements io.ReadSeeker and io.WriterTo.
type Reader struct {
	size   int64
	pos    int64
	stripe []byte
	number int64 // which stripe's number is in stripe now
}

// NewReader returns a reader at the start of the blob of size bytes.
func NewReader(size int64, seed uint64) *Reader {
	r := &Reader{size: max(size, 0), stripe: make([]byte, StripeSize)}
	// xorshift64* needs a state that is not zero.
	x := seed*0x9e3779b97f4a7c15 + 1
	if x == 0 {
		x = 1
	}
	for i := 8; i < StripeSize; i += 8 {
		x ^= x >> 12
		x ^= x << 25
		x ^= x >> 27
		binary.BigEndian.PutUint64(r.stripe[i:], x*0x2545f4914f6cdd1d)
	}
	return r
}

// Size returns the length of the whole blob in bytes.
func (r *Reader) Size() int64 { return r.size }

// rest returns what is left of the current stripe.
func (r *Reader) rest() []byte {
	number, offset := r.pos/StripeSize, r.pos%StripeSize
	if number != r.number {
		r.number = number
		binary.BigEndian.PutUint64(r.stripe, uint64(number))
	}
	return r.stripe[offset:min(StripeSize, r.size-number*StripeSize)]
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if r.pos >= r.size {
		return 0, io.EOF
	}
	done := 0
	for done < len(p) && r.pos < r.size {
		n := copy(p[done:], r.rest())
		done += n
		r.pos += int64(n)
	}
	return done, nil
}

// WriteTo implements io.WriterTo: it writes the rest of the blob stripe by
// stripe from its own buffer, without a copy.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	var done int64
	for r.pos < r.size {
		n, err := w.Write(r.rest())
		done += int64(n)
		r.pos += int64(n)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// Seek implements io.Seeker.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.size
	default:
		return 0, fmt.Errorf("blob: seek: whence %d", whence)
	}
	if offset < 0 {
		return 0, errors.New("blob: seek before the start")
	}
	r.pos = offset
	return offset, nil
}

// SHA256 returns the checksum of a whole blob, in hexadecimal.
func SHA256(size int64, seed uint64) string {
	h := sha256.New()
	_, _ = NewReader(size, seed).WriteTo(h) // a hash never returns an error
	return hex.EncodeToString(h.Sum(nil))
}
