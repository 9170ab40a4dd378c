package colo_test

import (
	"os"
	"testing"

	"github.com/coloctl/coloctl/netcompare/comparer"
)

// The test's binary is the comparer when a node starts it as one.
func TestMain(m *testing.M) {
	comparer.Main()
	os.Exit(m.Run())
}
