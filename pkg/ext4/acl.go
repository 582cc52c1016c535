package ext4

import (
	"errors"
	"math"
)

// A POSIX ACL is stored in a shorter form than getxattr gives: the id is left out
// where the tag needs none (fs/ext4/acl.h; include/uapi/linux/posix_acl_xattr.h).
const (
	aclDiskVersion  = 1
	aclXattrVersion = 2
	aclUser         = 0x02
	aclGroup        = 0x08
	aclOwnTags      = 0x01 | 0x04 | 0x10 | 0x20 // user_obj, group_obj, mask, other

	aclHeader    = 4 // version
	aclShort     = 4 // tag, perm
	aclLong      = 8 // tag, perm, id
	aclUndefined = math.MaxUint32
)

func aclHasID(tag uint16) (bool, error) {
	switch {
	case tag == aclUser || tag == aclGroup:
		return true, nil
	case tag&aclOwnTags == tag && tag&(tag-1) == 0 && tag != 0:
		return false, nil
	}
	return false, errors.New("unknown tag in an ACL")
}

// aclToXattr turns the stored form into that of getxattr.
func aclToXattr(b []byte) ([]byte, error) {
	if len(b) < aclHeader || le32(b, 0) != aclDiskVersion {
		return nil, errors.New("unknown version of an ACL")
	}
	out := make([]byte, aclHeader, aclHeader+2*len(b))
	put32(out, 0, aclXattrVersion)
	for b = b[aclHeader:]; len(b) > 0; {
		if len(b) < aclShort {
			return nil, errors.New("an ACL is cut off")
		}
		var e [aclLong]byte
		copy(e[:], b[:aclShort])
		long, err := aclHasID(le16(b, 0))
		if err != nil {
			return nil, err
		}
		put32(e[:], 4, aclUndefined)
		n := aclShort
		if long {
			if len(b) < aclLong {
				return nil, errors.New("an ACL is cut off")
			}
			n = copy(e[:], b)
		}
		out = append(out, e[:]...)
		b = b[n:]
	}
	return out, nil
}

// aclFromXattr is the reverse of aclToXattr.
func aclFromXattr(b []byte) ([]byte, error) {
	if len(b) < aclHeader || le32(b, 0) != aclXattrVersion || (len(b)-aclHeader)%aclLong != 0 {
		return nil, errors.New("unknown form of an ACL")
	}
	out := make([]byte, aclHeader, len(b))
	put32(out, 0, aclDiskVersion)
	for b = b[aclHeader:]; len(b) > 0; b = b[aclLong:] {
		long, err := aclHasID(le16(b, 0))
		if err != nil {
			return nil, err
		}
		n := aclShort
		if long {
			n = aclLong
		}
		out = append(out, b[:n]...)
	}
	return out, nil
}
