package heartbeat

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"time"
)

// A datagram, numbers in big endian:
//
//	magic "COLOHB" 6, version 1, flags 1
//	incarnation 8, number 8        of the sender, on this path
//	echo incarnation 8, number 8   the last valid datagram of the receiver that the sender got on this path
//	echo age 8                     how long ago, in nanoseconds
//	sender, receiver, path         each a length byte and as many bytes
//	HMAC-SHA256 32                 over all before it
type datagram struct {
	haste                bool
	incarnation, number  uint64
	echoInc, echoNumber  uint64
	echoAge              time.Duration
	sender, target, path string
}

const (
	magic       = "COLOHB"
	version     = 1
	flagHaste   = 1
	fixedLen    = len(magic) + 2 + 5*8
	macLen      = sha256.Size
	maxName     = 63
	maxDatagram = fixedLen + 3*(1+maxName) + macLen
)

var (
	errMalformed = errors.New("not a heartbeat datagram")
	errWrongKey  = errors.New("wrong key")
)

// codec seals and opens datagrams. It is not safe for concurrent use: it keeps the keyed hash, which makes both three times as fast.
type codec struct {
	mac hash.Hash
	sum [macLen]byte
}

func newCodec(key []byte) *codec { return &codec{mac: hmac.New(sha256.New, key)} }

func (c *codec) digest(b []byte) []byte {
	c.mac.Reset()
	_, _ = c.mac.Write(b)
	return c.mac.Sum(c.sum[:0])
}

// seal appends the datagram to b, which must be empty.
func (c *codec) seal(b []byte, d *datagram) []byte {
	var flags byte
	if d.haste {
		flags |= flagHaste
	}
	b = append(b, magic...)
	b = append(b, version, flags)
	for _, n := range []uint64{d.incarnation, d.number, d.echoInc, d.echoNumber, uint64(max(0, d.echoAge))} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	for _, s := range []string{d.sender, d.target, d.path} {
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	return append(b, c.digest(b)...)
}

// open checks and decodes a datagram; errMalformed or errWrongKey.
func (c *codec) open(b []byte) (datagram, error) {
	var d datagram
	if len(b) < fixedLen+3+macLen || len(b) > maxDatagram || string(b[:len(magic)]) != magic || b[len(magic)] != version {
		return d, errMalformed
	}
	body, mac := b[:len(b)-macLen], b[len(b)-macLen:]
	if !hmac.Equal(mac, c.digest(body)) {
		return d, errWrongKey
	}
	d.haste = body[len(magic)+1]&flagHaste != 0
	rest := body[len(magic)+2:]
	var age uint64
	for _, n := range []*uint64{&d.incarnation, &d.number, &d.echoInc, &d.echoNumber, &age} {
		*n, rest = binary.BigEndian.Uint64(rest), rest[8:]
	}
	d.echoAge = time.Duration(min(age, 1<<62))
	for _, s := range []*string{&d.sender, &d.target, &d.path} {
		if len(rest) == 0 || int(rest[0]) > maxName || len(rest) < 1+int(rest[0]) {
			return datagram{}, errMalformed
		}
		*s, rest = string(rest[1:1+rest[0]]), rest[1+rest[0]:]
	}
	if len(rest) != 0 || d.incarnation == 0 || d.number == 0 {
		return datagram{}, errMalformed
	}
	return d, nil
}
