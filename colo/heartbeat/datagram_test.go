package heartbeat

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var testKey = bytes.Repeat([]byte{1}, KeySize)

func TestDatagramRoundTrip(t *testing.T) {
	c := newCodec(testKey)
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringN(0, 15, maxName)
		in := datagram{
			haste: rapid.Bool().Draw(t, "haste"), incarnation: rapid.Uint64Min(1).Draw(t, "inc"), number: rapid.Uint64Min(1).Draw(t, "number"),
			echoInc: rapid.Uint64().Draw(t, "echoInc"), echoNumber: rapid.Uint64().Draw(t, "echoNumber"), echoAge: 12345,
			sender: name.Draw(t, "sender"), target: name.Draw(t, "target"), path: name.Draw(t, "path"),
		}
		b := c.seal(nil, &in)
		if len(b) > maxDatagram {
			t.Fatalf("%d bytes", len(b))
		}
		out, err := c.open(b)
		if err != nil || out != in {
			t.Fatalf("%+v, %v; want %+v", out, err, in)
		}
		// No bit may be changed.
		i := rapid.IntRange(0, len(b)*8-1).Draw(t, "bit")
		b[i/8] ^= 1 << (i % 8)
		if got, err := c.open(b); err == nil {
			t.Fatalf("with bit %d flipped: %+v", i, got)
		}
	})
}

func TestLongestNamesFit(t *testing.T) {
	c, long := newCodec(testKey), strings.Repeat("n", maxName)
	b := c.seal(nil, &datagram{incarnation: 1, number: 1, sender: long, target: long, path: long})
	if len(b) != maxDatagram {
		t.Errorf("%d bytes, want %d", len(b), maxDatagram)
	}
	if _, err := c.open(append(b, 0)); !errors.Is(err, errMalformed) {
		t.Errorf("one byte too long: %v", err)
	}
}

// FuzzOpen feeds what a holder of the key might send: the sum is always made right, so that the parser behind it is reached.
func FuzzOpen(f *testing.F) {
	good := newCodec(testKey).seal(nil, &datagram{incarnation: 1, number: 2, echoInc: 3, echoNumber: 4, echoAge: 5, sender: "a", target: "b", path: "p"})
	f.Add(good[:len(good)-macLen])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, body []byte) {
		c := newCodec(testKey)
		b := append(bytes.Clone(body), c.digest(body)...)
		d, err := c.open(b)
		if err != nil {
			return
		}
		again := c.seal(nil, &d)
		if d.haste || body[len(magic)+1]&^flagHaste != 0 || d.echoAge == 1<<62 {
			return // not the only way to write it
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%x\nbecame %x", b, again)
		}
	})
}

func BenchmarkSealAndOpen(b *testing.B) {
	c := newCodec(testKey)
	d := datagram{incarnation: 1, number: 1, sender: "alpha", target: "beta", path: "link0"}
	buf := make([]byte, 0, maxDatagram)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.open(c.seal(buf, &d)); err != nil {
			b.Fatal(err)
		}
	}
}
