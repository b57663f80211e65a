"""The simulator's vocabularies: what a feature value, an axis of an intent or a rule of a problem may be called.

A value's raw id in the dataset is its place here, from 1; 0 stands for "none" and is written as null.
"""

from __future__ import annotations

REGIONS = {  # the ids of the ``region`` column
    "SG": "Singapore", "MY": "Malaysia", "TH": "Thailand", "ID": "Indonesia",
    "VN": "Vietnam", "PH": "Philippines", "TW": "Taiwan", "BR": "Brazil",
}  # fmt: skip

WORDS: dict[str, tuple[str, ...]] = {
    "gender": ("Male", "Female", "Undisclosed"),
    "age_band": ("under 18", "18-24", "25-34", "35-44", "45-59", "60 and over"),
    "language": ("English", "Chinese", "Malay", "Thai", "Indonesian", "Vietnamese", "Tagalog", "Portuguese"),
    "tier": ("Classic", "Silver", "Gold", "Platinum"),
    "tenure": ("new this week", "under 3 months", "under a year", "over a year"),
    "city_tier": ("capital", "large city", "town", "rural"),
    "device": ("Android", "iOS", "Web"),
    "network": ("Wi-Fi", "5G", "4G", "3G"),
    "app_release": ("current", "one behind", "two behind", "outdated"),
    "entry_point": (
        "Home Page", "Order List", "Shipping Page", "Order Details", "Refund Page", "Payment Page", "Voucher Page",
        "Account Page", "Product Page", "Help Centre", "Push Notification", "Shop Page",
    ),
    "order_status": (
        "UNPAID", "PAYMENT_PENDING", "TO_CONFIRM", "TO_SHIP", "CANCEL_REQUESTED", "CANCELLED", "SHIPPED", "TO_RECEIVE",
        "OUT_FOR_DELIVERY", "DELIVERED", "COMPLETED", "RETURN_REQUESTED", "RETURN_SHIPPING", "REFUND_PENDING",
        "REFUNDED",
    ),
    "waiting": (
        "under 6 hours", "6-24 hours", "1-3 days", "3-5 days", "5-8 days", "8-15 days", "over 15 days",
    ),
    "promise": ("due in several days", "due today or tomorrow", "1-2 days late", "3-6 days late", "over a week late"),
    "last_scan": (
        "Label created", "Picked up", "At sorting centre", "In customs", "At local hub", "With the courier",
        "Delivery attempt failed", "Handed to recipient", "Placed in locker", "Left with neighbour",
        "Returning to sender", "Parcel damaged in transit",
    ),
    "delivery_type": ("Standard", "Express", "Economy", "Same Day", "Overseas", "Pickup Locker"),
    "carrier": (
        "SwiftPost", "BlueVan", "ParcelFox", "Kite Express", "HarborLine", "GreenMile", "Roadlark", "Postari",
        "Skybridge Cargo", "CityDash", "Lotus Logistics", "Anchor Freight",
    ),
    "category": (
        "Mobile Phones", "Computers", "Home Appliances", "Women's Clothes", "Men's Clothes", "Shoes", "Bags", "Beauty",
        "Health", "Groceries", "Baby Products", "Toys", "Home & Living", "Sports Gear", "Car Accessories", "Books",
    ),
    "shop_type": ("Marketplace", "Mall", "Preferred", "Overseas"),
    "payment_method": (
        "Credit Card", "Debit Card", "Mobile Wallet", "Cash on Delivery", "Bank Transfer", "Pay Later", "Instalments",
        "Convenience Store", "QR Payment", "Gift Card",
    ),
    "payment_status": ("Paid", "Awaiting payment", "Processing", "Failed", "Due on delivery", "Captured twice"),
    "refund_status": ("Under review", "Waiting for seller", "Approved", "Paid out", "Rejected"),
    "refund_method": ("Original card", "Wallet balance", "Bank account", "Coins"),
    "return_reason": (
        "Damaged item", "Wrong item", "Missing parts", "Not as described", "Counterfeit", "Does not fit",
        "Changed mind", "Expired item",
    ),
    "voucher_state": (
        "Applied", "Expired", "Minimum spend not reached", "Fully claimed", "Not valid for this shop",
        "Expiring today",
    ),
    "campaign": ("Payday sale", "Mega sale"),
    "app_event": (
        "Payment declined", "One-time code not accepted", "Login blocked", "Checkout error", "Photo upload failed",
        "Page not loading", "Address not saved", "Coins not credited", "Live stream froze", "Notifications off",
        "App crashed", "Voucher not applied",
    ),
    "page": (
        "Track Parcel", "Order Details", "Order List", "Refund Details", "Return Form", "Payment Methods", "Checkout",
        "Wallet", "Vouchers", "Coins", "Profile", "Address Book", "Security Settings", "Product", "Shop", "Cart",
        "Search", "Live Stream", "Chat With Seller", "Notifications",
    ),
    "article": (
        "Track a parcel", "Late delivery", "Lost parcels", "Marked delivered", "Change address", "Pickup lockers",
        "Customs and import tax", "Cancel an order", "Refund times", "Return an item", "Return shipping",
        "Damaged or wrong item", "Genuine products", "Payment failed", "Double charge", "Pay Later", "Cash on delivery",
        "Using vouchers", "Coins and cashback", "Login and security", "Personal data", "App problems",
        "Contact a seller", "Reviews and reports",
    ),
    "order_focus": ("current order", "another order"),
    "contact_outcome": ("solved", "unsolved", "passed to agent"),
    "payment_outcome": ("paid", "declined", "refunded"),
    "price_band": ("under 5", "5-20", "20-50", "50-200", "over 200"),
    "warehouse": ("seller's own", "platform", "overseas hub"),
    "insurance": ("none", "parcel", "parcel and item"),
    "address_kind": ("home", "office", "school", "locker"),
    "referrer": ("direct", "search ad", "social", "friend", "email"),
    "seller_band": ("under 4.0", "4.0-4.5", "4.5-4.8", "over 4.8"),
    "card_scheme": ("none saved", "one saved", "several saved"),
    "day_part": ("night", "morning", "afternoon", "evening"),
    "yes_no": ("No", "Yes"),
}  # fmt: skip

# The phrase that makes an intent specific: title + phrase + "?", and the sentence its description gains.
PHRASES: dict[str, tuple[str, str]] = {
    "carrier": (" with {}", "Covers parcels carried by {}: its depots, scan times and phone line."),
    "category": (" for {}", "Covers purchases from the category {} and its own rules."),
    "delivery_type": (" with {} delivery", "Covers orders sent with {} delivery and its promised times."),
    "shop_type": (" in {} shops", "Covers {} shops and what they guarantee."),
    "payment_method": (" when paying by {}", "Covers orders paid by {} and the limits of that method."),
    "device": (" on {}", "Covers the {} version: settings, permissions and updates."),
    "tier": (" as a {} member", "Covers {} members and what their tier grants."),
    "return_reason": (" under the reason {}", "Covers requests filed under the reason {} and the proof they need."),
}  # fmt: skip


def code(vocabulary: str, name: str) -> int:
    """Place of a value in its vocabulary, from 1."""
    return WORDS[vocabulary].index(name) + 1
