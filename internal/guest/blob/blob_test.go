package blob

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

func TestKnownChecksums(t *testing.T) {
	// Fixed for good: a client and a guest of different builds must agree.
	for _, c := range []struct {
		size int64
		seed uint64
		want string
	}{
		{0, 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
		{1 << 20, 0, "c965c67a8c1a4ce1d3e1665ab4549d235e068630ae1996ef614067c9587c532d"},
		{1<<20 + 1, 7, "cb7f2c1d8d58ce9687d8bb7d7d54c0010ca6eb8ba716de382a3be1a2eb8adc92"},
	} {
		if got := SHA256(c.size, c.seed); got != c.want {
			t.Errorf("SHA256(%d, %d) = %s, want %s", c.size, c.seed, got, c.want)
		}
	}
}

func TestReaderIsAReadSeeker(t *testing.T) {
	var whole bytes.Buffer
	const size = 3*StripeSize + 5
	if n, err := NewReader(size, 3).WriteTo(&whole); err != nil || n != size {
		t.Fatal(n, err)
	}
	if err := iotest.TestReader(NewReader(size, 3), whole.Bytes()); err != nil {
		t.Error(err)
	}
	sum := sha256.Sum256(whole.Bytes())
	if hex.EncodeToString(sum[:]) != SHA256(size, 3) {
		t.Error("SHA256 is not that of the bytes")
	}
}

func TestNoTwoStripesAreAlike(t *testing.T) {
	seen := map[[32]byte]bool{}
	for seed := range uint64(3) {
		r := NewReader(4*StripeSize, seed)
		stripe := make([]byte, StripeSize)
		for range 4 {
			if _, err := io.ReadFull(r, stripe); err != nil {
				t.Fatal(err)
			}
			if sum := sha256.Sum256(stripe); seen[sum] {
				t.Error("a stripe came twice")
			} else {
				seen[sum] = true
			}
		}
	}
}

func TestPartsAreThoseOfTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(0, 5*StripeSize).Draw(t, "size")
		seed := rapid.Uint64().Draw(t, "seed")
		whole, err := io.ReadAll(NewReader(size, seed))
		if err != nil || int64(len(whole)) != size {
			t.Fatal(len(whole), err)
		}
		from := rapid.Int64Range(0, size).Draw(t, "from")
		r := NewReader(size, seed)
		if _, err := r.Seek(from, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		var part bytes.Buffer
		if _, err := r.WriteTo(&part); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(part.Bytes(), whole[from:]) {
			t.Error("differs")
		}
	})
}
